"""Who chose what there is not is told what there is."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest

from moc.kernel.choices import told


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Car(msgspec.Struct, tag="car"):
    doors: Literal[3, 5] = 5


@dataclass
class Boat:
    colours: tuple[Annotated[Colour, msgspec.Meta(description="of the hull")], ...] = ()


class Yard(msgspec.Struct, rename={"first": "one"}):
    first: Car | None = None
    boats: dict[str, list[Boat]] = {}
    size: int = 0


@pytest.mark.parametrize(
    ("document", "kind", "words"),
    [
        ("green", Colour, "Invalid enum value 'green'; there are red, blue"),
        ("a\nb", Colour, "Invalid enum value 'a\\nb'; there are red, blue"),
        ({"one": {"type": "car", "doors": 4}}, Yard, "Invalid enum value 4 - at `$.one.doors`; there are 3, 5"),
        (
            {"boats": {"x.y": [{}, {"colours": ["red", "x"]}]}},
            Yard,
            "Invalid enum value 'x' - at `$.boats[...][1].colours[1]`; there are red, blue",
        ),
        ({"size": "x"}, Yard, "Expected `int`, got `str` - at `$.size`"),
    ],
)
def test_what_there_is_is_told(document: Any, kind: Any, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert(document, kind)
    assert told(refused.value, kind) == words
