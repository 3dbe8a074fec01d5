"""What there is to choose from, told to who chose something else."""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

_NONE_OF_THEM: Final = re.compile(r"Invalid enum value .*?(?: - at `(\$[^`]*)`)?", re.DOTALL)
_STEP: Final = re.compile(r"\.([^.\[]+)|\[[^\]]*\]")


def told(error: msgspec.ValidationError, kind: Any) -> str:
    """What is wrong with what was to be a `kind`, and which values there are where it is none of a few."""
    text = str(error)
    found = _NONE_OF_THEM.fullmatch(text)
    if found is None:
        return text
    types = [inspect.type_info(kind)]
    for step in _STEP.finditer(found[1] or ""):
        types = [inner for outer in types for inner in _inner(outer, step[1])]
    values = dict.fromkeys(str(value) for each in types for value in _values(each))
    return f"{text}; there are {', '.join(values)}" if values else text


def _inner(outer: inspect.Type, field: str | None) -> Iterator[inspect.Type]:
    """What a field of a type is, or with None what its items are."""
    match outer:
        case inspect.Metadata(type=inner):
            yield from _inner(inner, field)
        case inspect.UnionType(types=several):
            for one in several:
                yield from _inner(one, field)
        case inspect.StructType(fields=fields) | inspect.DataclassType(fields=fields):
            yield from (each.type for each in fields if each.encode_name == field)
        case inspect.CollectionType(item_type=item) | inspect.DictType(value_type=item):
            if field is None:
                yield item


def _values(kind: inspect.Type) -> Iterator[Any]:
    match kind:
        case inspect.Metadata(type=inner):
            yield from _values(inner)
        case inspect.UnionType(types=several):
            for one in several:
                yield from _values(one)
        case inspect.EnumType(cls=members):
            yield from (member.value for member in members)
        case inspect.LiteralType(values=values):
            yield from values
