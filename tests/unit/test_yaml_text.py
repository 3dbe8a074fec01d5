"""YAML in which every key counts."""

from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest
from moc.kernel.yaml_text import load


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", None),
        ("a: 1\nb: [{a: 1}, {a: 2}]", {"a": 1, "b": [{"a": 1}, {"a": 2}]}),
        ("one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}", {"one": {"a": 1, "b": 2}, "two": {"a": 1, "b": 3}}),
        ("1: a\n'1': b", {1: "a", "1": "b"}),
        ("é: 1".encode("utf-16"), {"é": 1}),
    ],
)
def test_what_counts_is_read(text: str | bytes, values: Any) -> None:
    assert load(text, "x.yaml") == values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3: a is there twice (first on line 1)"),
        ("a:\n- b:\n    c: 1\n    c: 1\n", "x.yaml:4: a[0].b.c is there twice (first on line 3)"),
        ("&a [*a, {b: 1, b: 2}]", "x.yaml:1: [1].b is there twice (first on line 1)"),
        ("a: [", "x.yaml:1: not YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\nb: 2024-13-01", "x.yaml:2: not YAML: this is no timestamp"),
        ("a: \0", "x.yaml: not YAML: has characters that no text has"),
        (b"a: \xff", "x.yaml: not YAML: has characters that no text has"),
        ("[" * 5000, "x.yaml: is nested too deeply"),
        ("a: !!python/object:os.system {}", "x.yaml:1: not YAML: could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str | bytes, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        load(text, "x.yaml")
    assert refused.value.message.startswith(told)
