"""YAML texts in which every key counts: one that is there twice is refused, where YAML would keep the last alone."""

from typing import Any

import yaml

from moc.kernel.errors import InvalidRequest


class Loader(yaml.SafeLoader):
    """Tells where a value is that cannot be what it is written as, such as a date of a thirteenth month."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"this is no {kind}", node.start_mark) from None


def load(text: str | bytes, name: str) -> Any:
    """What `text` says; InvalidRequest with `name` and the line when it is no YAML, or a key is there twice."""
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            check_keys(node, name)
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidRequest(f"{name}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError:
        raise InvalidRequest(f"{name}: not YAML: has characters that no text has") from None
    except RecursionError:
        raise InvalidRequest(f"{name}: is nested too deeply") from None


def check_keys(root: yaml.Node | None, name: str) -> None:
    """InvalidRequest with `name` and the line when a mapping has a key twice."""
    left, seen = [(root, "")], set[int]()
    while left:
        node, path = left.pop()
        if id(node) in seen:  # an anchor's, which may even be in itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, Any], int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                here, line = f"{path}.{key.value}" if path else str(key.value), key.start_mark.line + 1
                if (first := lines.get((key.tag, key.value))) is not None:
                    raise InvalidRequest(f"{name}:{line}: {here} is there twice (first on line {first})")
                lines[key.tag, key.value] = line
                left.append((value, here))
        elif isinstance(node, yaml.SequenceNode):
            left.extend((value, f"{path}[{place}]") for place, value in enumerate(node.value))
