"""Fail when a function does not fit a screen or a file does not fit a sitting: `sizes.py FOLDER...`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500


def too_long(path: Path) -> Iterator[str]:
    """A line for each thing in the file that is over its limit; decorators do not count."""
    text = path.read_text()
    lines = len(text.splitlines())
    if lines > FILE_LINES_MAX:
        yield f"{path}:1: file of {lines} lines, at most {FILE_LINES_MAX}"
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"


def main() -> int:
    paths = sorted(path for folder in sys.argv[1:] for path in Path(folder).rglob("*.py"))
    problems = [problem for path in paths for problem in too_long(path)]
    print("\n".join(problems) if problems else f"{len(paths)} files, none too long")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
