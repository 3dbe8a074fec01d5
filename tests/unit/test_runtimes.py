import subprocess
import sys
from typing import Any

import pytest

from moc.kernel.errors import LoadFailed
from moc.workers.runtimes.options import Options
from moc.workers.runtimes.runtime import find

WITHOUT = """
import sys
sys.modules["{engine}"] = None
from moc.kernel.errors import LoadFailed
from moc.workers.runtimes.runtime import find
try:
    find("{runtime}")
except LoadFailed as error:
    print(error.reason, error.message)
"""


@pytest.mark.parametrize(
    ("runtime", "engine", "extra"),
    [("llama_cpp", "xllamacpp", "llama"), ("onnx", "onnxruntime", "onnx"), ("transformers", "torch", "transformers")],
)
def test_a_missing_engine_is_told_with_the_line_that_brings_it(runtime: str, engine: str, extra: str) -> None:
    script = WITHOUT.format(runtime=runtime, engine=engine)
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("invalid_spec ")
    assert f"pip install 'modelops-coordinator[{extra}]'" in said


def test_an_unknown_runtime_is_told_with_those_there_are() -> None:
    with pytest.raises(LoadFailed, match="llama_cpp, onnx, python"):
        find("abacus")


@pytest.mark.parametrize("value", [0, 9, 1.0, "3", True])
def test_a_number_out_of_range_or_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(LoadFailed, match=r"'n' of the runtime r is .*, not a whole number from 1 to 8"):
        Options("r", {"n": value}).integer("n", 4, low=1, high=8)


def test_what_is_not_given_or_null_is_the_default() -> None:
    options = Options("r", {"a": None})
    assert options.integer("a", 4, low=1, high=8) == 4
    assert options.flag("b", True) is True
    assert options.text("c") is None
    assert options.mappings("d") == []
    options.done()


def test_what_nobody_read_is_refused_naming_the_nearest() -> None:
    options = Options("r", {"thread": 1})
    options.integer("threads", 4, low=1, high=8)
    with pytest.raises(LoadFailed, match="no option 'thread'; did you mean 'threads'"):
        options.done()


def test_what_is_near_to_nothing_is_refused_with_all_there_are() -> None:
    options = Options("r", {"zzz": 1})
    options.flag("b", True)
    options.text("a")
    with pytest.raises(LoadFailed, match="there are a, b"):
        options.done()
