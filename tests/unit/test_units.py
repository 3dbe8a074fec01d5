"""Sizes and durations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moc.kernel.errors import InvalidRequest
from moc.kernel.units import Bytes, parse_duration_s


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), (512, 512), ("512", 512), ("1k", 1024), ("1kB", 1000), ("1KiB", 1024), ("12GiB", 12 * 1024**3),
     ("500MB", 500_000_000), ("1.5g", 3 * 512 * 1024**2), (" 2 TiB ", 2 * 1024**4), ("7b", 7)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert Bytes.parse(text) == size
    assert isinstance(Bytes.parse(text), Bytes)


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 GiB B", "1e9", "12 parsecs", "1s", "0x10", True, "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not a size"):
        Bytes.parse(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (1536, "1.5KiB"), (12 * 1024**3, "12GiB"),
                       (3 * 1024**4, "3TiB")],
)  # fmt: skip
def test_sizes_print_with_a_unit(size: int, text: str) -> None:
    assert str(Bytes(size)) == text


@given(st.integers(0, 2**50))
def test_a_printed_size_reads_back_nearly(size: int) -> None:
    assert Bytes.parse(str(Bytes(size))) == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("250ms", 0.25), ("1d", 86400), ("1.5", 1.5),
                          (0, 0), (2.5, 2.5)],
)  # fmt: skip
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 year", "5GiB", "inf", False])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not a duration"):
        parse_duration_s(text)
