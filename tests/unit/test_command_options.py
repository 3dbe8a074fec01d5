import os
import re
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moc.kernel.errors import LoadFailed
from moc.models.model import ModelSpec
from moc.service.models import spec_from
from moc.workers.runtimes.command import load
from moc.workers.runtimes.served.line import Words

MANUAL = Path(__file__).parents[2] / "docs" / "howto" / "run-any-engine.md"
MEANINGS = {"host": "127.0.0.1", "port": "4000", "path": "/models/a b.gguf", "key": "secret"}


def never(work: Coroutine[Any, Any, Any]) -> Any:
    work.close()
    raise AssertionError("nothing was to be started")


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("--port={port}", "--port=4000"),
        ("{host}:{port}", "127.0.0.1:4000"),
        ("{path}/tokenizer.json", "/models/a b.gguf/tokenizer.json"),
        ('{"temperature": 0, "a": {"b": {}}}', '{"temperature": 0, "a": {"b": {}}}'),
        ("$HOME;{port}`ls`", "$HOME;4000`ls`"),
        ("{}", "{}"),
    ],
)
def test_words_in_braces_are_replaced_and_nothing_else(text: str, filled: str) -> None:
    assert Words(MEANINGS).fill(text) == filled


def test_it_is_known_which_words_were_used() -> None:
    words = Words(MEANINGS)
    words.fill("{host}:{port}")
    assert words.used == {"host", "port"}


def test_what_a_word_stands_for_is_not_looked_at_again() -> None:
    assert Words({"path": "/{port}", "port": "1"}).fill("{path}") == "/{port}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{prot}", r"no \{prot\}; did you mean \{port\}"),
        ("{zzz}", r"no \{zzz\}; there are \{host\}"),
        ("{source}", "the model has no source"),
        ("{file:/etc/hostname}", "can stand in `env` only"),
        ("{env:HOME}", r"there is no \{env:HOME\}"),
    ],
)
def test_a_word_that_stands_for_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(LoadFailed, match=said) as caught:
        Words({**MEANINGS, "source": ""}).fill(text)
    assert caught.value.reason == "invalid_spec"


def test_a_variable_may_be_read_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("hf_123\n")
    assert Words({}).fill(f"{{file:{secret}}}", files=True) == "hf_123"
    with pytest.raises(LoadFailed, match=r"gone of `env` cannot be read: No such file"):
        Words({}).fill(f"{{file:{tmp_path}/gone}}", files=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs the option 'command'"),
        ({"command": "llama-server --port {port}"}, "'command'.*not a list of texts"),
        ({"command": ["llama-server", 8080]}, "'command'.*not a list of texts"),
        ({"command": ["./llama-server"]}, "neither a name on PATH nor an absolute path"),
        ({"command": ["true", "{pth}"]}, r"did you mean \{path\}"),
        ({"command": ["true", "{path}"]}, "the model has no source"),
        ({"command": ["true"], "protocol": "grpc"}, "'protocol'.*one of openai, oip"),
        ({"command": ["true"], "kinds": ["chats"]}, "'kinds'.*'chats'.*one of tensors, chat"),
        ({"command": ["true"], "health": "@elsewhere/"}, "write a path"),
        ({"command": ["true"], "env": {"A": 1}}, "'env'.*a mapping of names to texts"),
        ({"command": ["true"], "env": {"CUDA_VISIBLE_DEVICES": "0"}}, "may not set CUDA_VISIBLE_DEVICES"),
        ({"command": ["true"], "concurrency": 0}, "'concurrency'.*from 1 to 4096"),
        ({"command": ["true"], "start_timeout_s": "long"}, "'start_timeout_s'.*a number from 0.1 to"),
        ({"command": ["true"], "sleep": {"path": "/sleep"}}, "'sleep' and 'wake' go together"),
        ({"command": ["true"], "wake": {"path": "wake"}}, r"'wake' is .*; write \{path: /"),
        ({"command": ["true"], "wake": {"path": "/wake", "method": "PUT"}}, "'wake' is"),
        ({"command": ["true"], "wake": "/wake"}, "'wake'.*not a mapping"),
        ({"command": ["true"], "stop_signal": "SIGSTOP"}, "'stop_signal'.*one of SIGTERM, SIGINT"),
        ({"comand": ["true"]}, "no option 'comand'; did you mean 'command'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_is_started(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LoadFailed, match=said) as caught:
        load(model="m@1", path="", options=options, run=never)
    assert caught.value.reason == "invalid_spec"


def entries() -> Iterator[Any]:
    """The models that the manual shows, by name."""
    for block in re.findall(r"```yaml\n(.*?)```", MANUAL.read_text(), re.DOTALL):
        document = yaml.safe_load(block)
        for name, entry in document.get("models", document).items():
            if "runtime" in entry:
                yield pytest.param(spec_from(entry, where=name), id=name)


@pytest.mark.parametrize("spec", list(entries()))
def test_what_the_manual_shows_is_understood(spec: ModelSpec, tmp_path: Path) -> None:
    options = {**spec.options, "command": ["/nowhere/server", *spec.options["command"][1:]]}
    with pytest.raises(LoadFailed, match="server cannot be started"):
        load(model="m@1", path=str(tmp_path), options=options, run=never)
    assert spec.memory_bytes


def test_a_program_that_is_not_there_is_told_by_name() -> None:
    before = dict(os.environ)
    with pytest.raises(LoadFailed, match="no-such-server cannot be started: No such file") as caught:
        load(model="m@1", path="", options={"command": ["/opt/no-such-server"]}, run=never)
    assert caught.value.reason == "load_failed"
    assert dict(os.environ) == before
