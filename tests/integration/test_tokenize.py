"""Tokens of texts and conversations, from the engines that read them: two of one model say the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from moc.inference.request import Request
from moc.kernel.errors import InvalidRequest, Unimplemented
from moc.models.ports import Launch
from moc.workers.link import WorkerLink
from moc.workers.local import LocalWorkers
from tests import tiny
from tests.gguf_models import tiny_gguf
from tests.hosted import start

SAID = [{"role": "user", "content": "Name three rivers."}, {"role": "assistant", "content": "Rhine, Elbe, Oder."}]
TEXTS = ["Name three rivers.", "", "Où est-elle? — 東京 🦉", "a\n\n  b\t<|im_start|>user"]


def asked(**fields: Any) -> Request:
    return Request("tokenize", json.dumps({"model": "m", **fields}).encode())


async def tokens(link: WorkerLink, **fields: Any) -> list[int]:
    told = json.loads(bytes((await link.infer(asked(**fields))).body))
    assert told["count"] == len(told["tokens"])
    assert told["max_model_len"] == 256
    found: list[int] = told["tokens"]
    return found


async def line_to(workers: LocalWorkers, runtime: str, path: Path, **options: Any) -> WorkerLink:
    given = {"context": 512, "slots": 2, **options}
    launch = Launch(model=f"{runtime.replace('_', '-')}@1", digest="d", runtime=runtime, path=str(path), options=given)
    link = workers.link((await start(workers, launch)).id)
    assert link is not None
    return link


async def test_both_engines_make_the_same_tokens(workers: LocalWorkers, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path)
    llama = await line_to(workers, "llama_cpp", path)
    transformers = await line_to(workers, "transformers", path.parent / "transformers")
    for text in TEXTS:
        assert await tokens(llama, prompt=text) == await tokens(transformers, prompt=text), text
    begun = await tokens(llama, messages=SAID[:1])
    assert begun == await tokens(transformers, messages=SAID[:1])
    closed = await tokens(transformers, messages=SAID, add_generation_prompt=False)
    left_open = await tokens(llama, messages=SAID, add_generation_prompt=False)  # for the model to go on with
    assert closed[: len(left_open)] == left_open
    assert 0 <= len(closed) - len(left_open) <= 2
    assert left_open[: len(begun)] == begun
    for link in (llama, transformers):
        with pytest.raises(InvalidRequest, match="either `prompt` or `messages`"):
            await link.infer(asked())
        with pytest.raises(InvalidRequest, match="not right"):
            await link.infer(asked(prompt=7))
        with pytest.raises(InvalidRequest):
            await link.infer(asked(messages=[{"content": "no role"}]))
        with pytest.raises(Unimplemented, match="not streamed"):
            await anext(link.stream(asked(prompt="a")))
        assert await tokens(link, prompt="still there")


async def test_an_encoder_tells_of_the_marks_around_a_text(workers: LocalWorkers, tmp_path: Path) -> None:
    link = await line_to(
        workers, "transformers", tiny.encoder(tmp_path / "encoder"), context=256, slots=1, pooling="mean"
    )
    told = json.loads(bytes((await link.infer(asked(prompt="Rhine"))).body))
    bare = json.loads(bytes((await link.infer(asked(prompt="Rhine", add_special_tokens=False))).body))
    assert told["tokens"] == [0, *bare["tokens"], 1]
    with pytest.raises(InvalidRequest, match="no chat template"):
        await link.infer(asked(messages=SAID))
