"""A YAML file with the line of each of its keys, for whoever has to be told what is wrong where."""

import difflib
import os
import re
from typing import Any

import yaml

from moc.kernel.errors import InvalidRequest
from moc.kernel.yaml_text import Loader, check_keys

PREFIX = "MOC_"
"""What the environment variables of the configuration begin with."""
TEXT_MAX = 1024 * 1024
NODES_MAX = 100_000
_QUOTED = re.compile(r"""(['"])(?!<).{2,}\1""")


class Document:
    """A YAML text's values, and the line each key stands on."""

    def __init__(self, name: str, values: dict[str, Any], lines: dict[tuple[str, ...], int]) -> None:
        self.name = name
        self.values = values
        self.lines = lines

    @classmethod
    def parse(cls, text: str, name: str) -> "Document":
        """What `text` says; InvalidRequest with `name` and the line when it is no YAML mapping, or too much."""
        if len(text) > TEXT_MAX:
            raise InvalidRequest(f"{name}: has {len(text)} characters; a configuration has at most {TEXT_MAX}")
        try:
            node = yaml.compose(text, yaml.SafeLoader)
            _check_size(node, name)
            check_keys(node, name)
            values = yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
            raise InvalidRequest(f"{name}{line}: not YAML: {_problem(error)}") from None
        except yaml.YAMLError:
            raise InvalidRequest(f"{name}: not YAML: has characters that no text has") from None
        except RecursionError:
            raise InvalidRequest(f"{name}: is nested too deeply") from None
        if values is None:
            return cls(name, {}, {})
        if not isinstance(values, dict):
            raise InvalidRequest(f"{name}:1: must be a mapping of sections such as `server:`")
        lines: dict[tuple[str, ...], int] = {}
        _collect(node, (), lines)
        for key in values:
            if not isinstance(key, str):
                raise InvalidRequest(f"{name}:{lines.get((str(key),), 1)}: {key} is no section; one is `server:`")
        return cls(name, values, lines)

    def where(self, path: tuple[str, ...]) -> str:
        """`file:line: dotted.key`, or the environment variable that goes before it or stands alone."""
        dotted = ".".join(path)
        variables = [PREFIX + "__".join(path[:length]).upper() for length in range(len(path), 0, -1)]
        given = next((variable for variable in variables if variable in os.environ), None)
        if path in self.lines and given != variables[0]:
            return f"{self.name}:{self.lines[path]}: {dotted}"
        return f"{self.name}: {dotted}" if given is None else f"environment variable {given}: {dotted}"


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, without what it quotes of the text: that may be a secret."""
    return _QUOTED.sub("...", error.problem or "")


def _check_size(root: yaml.Node | None, name: str) -> None:
    """Refuse what is small as a text and, through its anchors, without end as values."""
    left, seen = [root], 0
    while left:
        node = left.pop()
        seen += 1
        if seen > NODES_MAX:
            raise InvalidRequest(f"{name}: has more than {NODES_MAX} keys and values, with its anchors written out")
        if isinstance(node, yaml.MappingNode):
            left.extend(part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            left.extend(node.value)


def _collect(node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        lines[here] = key.start_mark.line + 1
        _collect(value, here, lines)


def nearest(key: str, known: list[str]) -> str:
    """What to say of a key that nobody knows: the one that was meant, or all there are."""
    near = difflib.get_close_matches(key, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
