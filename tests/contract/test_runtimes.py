"""What every runtime promises, asked of each through a real worker."""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from moc.inference.ports import Link
from moc.inference.request import Reply, Request
from moc.kernel.errors import InvalidRequest, LoadFailed, Unimplemented
from moc.models.ports import Launch
from tests.hosted import Host, arrays, example, host, start, tensors
from tests.models import smollm2_path


@dataclass(frozen=True)
class Case:
    """One runtime with a model: a request it answers, one it refuses, one of a kind it does not do."""

    launch: Callable[[Path], Launch]
    good: Request
    check: Callable[[Reply], None]
    bad: Request
    other: Request
    misspelt: tuple[str, str]
    suffix: str


def doubling_model(folder: Path) -> Path:
    """An ONNX model that adds its input to itself."""
    shape = [None, 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    path = folder / "doubling.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def _doubling(folder: Path) -> Launch:
    return Launch(model="doubling@1", digest="d", runtime="onnx", path=str(doubling_model(folder)))


def _smollm2(_: Path) -> Launch:
    return Launch(model="llm@1", digest="d", runtime="llama_cpp", path=str(smollm2_path()))


def chat(content: Any, **fields: Any) -> Request:
    """A chat request; temperature 0 and few tokens unless told otherwise."""
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 4, **fields}
    return Request("chat", json.dumps(body).encode())


def _check_chat(reply: Reply) -> None:
    answer = json.loads(bytes(reply.body))
    assert answer["model"] == "llm@1"
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 4


def _check_sums(reply: Reply) -> None:
    assert {name: a.tolist() for name, a in arrays(reply).items()} == {"OUTPUT0": [3] * 16, "OUTPUT1": [-1] * 16}


def _check_doubled(reply: Reply) -> None:
    assert arrays(reply)["y"].tolist() == [[2.0, 2.0, 2.0, 2.0]]


def _tiny(folder: Path) -> Launch:
    from tests import tiny  # brings torch, which takes seconds

    path = str(tiny.llama(folder / "tiny"))
    return Launch(model="llm@1", digest="d", runtime="transformers", path=path, options={"task": "chat"})


def _command(_: Path) -> Launch:
    command = [sys.executable, str(Path(__file__).parents[1] / "llama_server.py"), "{port}", "{path}", "{model}"]
    options = {"command": command, "kinds": ["chat", "completion"]}
    return Launch(model="llm@1", digest="d", runtime="command", path=str(smollm2_path()), options=options)


ones = np.full(16, 1, "<i4")
CASES = {
    "python": Case(
        launch=lambda _: example("add_sub"),
        good=tensors(INPUT0=ones, INPUT1=ones * 2),
        check=_check_sums,
        bad=tensors(INPUT0=ones),
        other=chat("Hi"),
        misspelt=("clas", "class"),
        suffix=".py",
    ),
    "onnx": Case(
        launch=_doubling,
        good=tensors(x=np.ones((1, 4), "<f4")),
        check=_check_doubled,
        bad=tensors(x=np.ones((1, 3), "<f4")),
        other=chat("Hi"),
        misspelt=("thread", "threads"),
        suffix=".onnx",
    ),
    "llama_cpp": Case(
        launch=_smollm2,
        good=chat("Hi"),
        check=_check_chat,
        bad=chat("Hi", temperature="hot"),
        other=tensors(x=ones),
        misspelt=("contxt", "context"),
        suffix=".gguf",
    ),
    "transformers": Case(
        launch=_tiny,
        good=chat("Hi"),
        check=_check_chat,
        bad=chat("Hi", temperature="hot"),
        other=tensors(x=ones),
        misspelt=("contxt", "context"),
        suffix="",
    ),
    "command": Case(
        launch=_command,
        good=chat("Hi"),
        check=_check_chat,
        bad=chat("Hi", temperature="hot"),
        other=tensors(x=ones),
        misspelt=("comand", "command"),
        suffix="",
    ),
}
SLOW = frozenset({"command", "transformers"})


@pytest.fixture
async def here() -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="moc-") as short:  # a socket's path must be
        async with host(Path(short)) as it:
            yield it


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
async def link(here: Host, case: Case, tmp_path: Path) -> Link:
    workers = await here.coordinator()
    worker = await start(workers, case.launch(tmp_path))
    found = workers.link(worker.id)
    assert found is not None
    return found


async def test_it_says_what_it_is(link: Link, case: Case) -> None:
    assert case.good.kind in link.info.kinds
    assert link.info.engine
    assert link.info.concurrency >= 1
    if case.good.kind == "tensors":
        assert {t.name for t in case.good.inputs} == {spec.name for spec in link.info.inputs}
        assert link.info.outputs


async def test_it_answers_many_at_once_each_with_its_own(link: Link, case: Case) -> None:
    for reply in await asyncio.gather(*(link.infer(case.good) for _ in range(8))):
        case.check(reply)


async def test_it_refuses_a_wrong_request_and_goes_on(link: Link, case: Case) -> None:
    with pytest.raises(InvalidRequest):
        await link.infer(case.bad)
    case.check(await link.infer(case.good))


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.good.kind == "tensors"], ids=lambda c: c.suffix)
async def test_it_refuses_an_output_that_is_not_there(link: Link, case: Case) -> None:
    wrong = Request("tensors", case.good.body, case.good.inputs, ("nonsense",))
    with pytest.raises(InvalidRequest, match="nonsense"):
        await link.infer(wrong)


async def test_it_says_so_when_it_cannot_do_what_is_asked(link: Link, case: Case) -> None:
    with pytest.raises(Unimplemented):
        await link.infer(case.other)
    with pytest.raises(Unimplemented):
        await anext(aiter(link.stream(case.other)))


async def test_it_goes_on_after_a_cancelled_request(link: Link, case: Case) -> None:
    asked = [asyncio.create_task(link.infer(case.good)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in asked:
        task.cancel()
    assert {type(r) for r in await asyncio.gather(*asked, return_exceptions=True)} <= {asyncio.CancelledError, Reply}
    case.check(await link.infer(case.good))


async def test_it_refuses_an_unknown_option_naming_the_nearest(here: Host, case: Case, tmp_path: Path) -> None:
    wrong, right = case.misspelt
    launch = replace(case.launch(tmp_path), options={wrong: 1})
    workers = await here.coordinator()
    with pytest.raises(LoadFailed, match=f"'{wrong}'.*'{right}'") as caught:
        await start(workers, launch)
    assert caught.value.reason == "invalid_spec"


async def test_it_says_why_a_file_cannot_be_loaded_without_saying_where_it_is(
    here: Host, case: Case, tmp_path: Path
) -> None:
    broken = tmp_path / "secret-place" / f"broken{case.suffix}"
    broken.parent.mkdir()
    broken.write_bytes(b"def (" + b"\0" * 100)
    workers = await here.coordinator()
    with pytest.raises(LoadFailed) as caught:
        await start(workers, replace(case.launch(tmp_path), path=str(broken)))
    assert caught.value.reason == "load_failed"
    assert "secret-place" not in caught.value.message
    assert isinstance(caught.value.details["log"], list)
    assert workers.workers() == []


async def test_it_says_that_a_file_is_gone(here: Host, case: Case, tmp_path: Path) -> None:
    workers = await here.coordinator()
    with pytest.raises(LoadFailed, match="no file gone"):
        await start(workers, replace(case.launch(tmp_path), path=str(tmp_path / f"gone{case.suffix}")))


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.suffix], ids=lambda c: c.suffix)
async def test_it_takes_the_only_fitting_file_of_a_folder(here: Host, case: Case, tmp_path: Path) -> None:
    launch = case.launch(tmp_path)
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / f"model{case.suffix}").symlink_to(launch.path)
    (folder / "README").write_text("nothing to load")
    workers = await here.coordinator()
    worker = await start(workers, replace(launch, path=str(folder)))
    link = workers.link(worker.id)
    assert link is not None
    case.check(await link.infer(case.good))
