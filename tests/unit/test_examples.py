"""Rows as tokens: what is learned of them, and what is only read."""

from pathlib import Path
from typing import Any

import pytest

from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.examples import IGNORED, Encoder
from tests import tiny

FORGETFUL = (
    "{% for message in messages %}<s>{{ message['role'] }}: "
    "{% if loop.last or message['role'] == 'user' %}{{ message['content'] }}{% else %}…{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
"""Leaves out what was said before, as templates do with thoughts."""


def _message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TALK = {
    "messages": [
        _message("system", "Be brief."),
        _message("user", "Name a river."),
        _message("assistant", "The Rhine."),
        _message("user", "And a sea?"),
        _message("assistant", "The Baltic — deep."),
    ]
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.tokenizer(tmp_path_factory.mktemp("tokenizer"))


def _learned(tokenizer: Any, row: dict[str, Any], **how: Any) -> str:
    (example,) = Encoder(tokenizer, max_length=how.pop("max_length", 512)).encode([row], assistant_only="auto").rows
    text: str = tokenizer.decode([token for token in example["labels"] if token != IGNORED])
    return text


def test_of_a_conversation_only_what_the_assistant_says_is_learned_and_where_it_ends(tokenizer: Any) -> None:
    assert _learned(tokenizer, TALK) == "The Rhine.</s>The Baltic — deep.</s>"


def test_an_answer_of_weight_0_is_read_and_not_learned(tokenizer: Any) -> None:
    messages = [dict(message) for message in TALK["messages"]]
    messages[2]["weight"] = 0
    assert _learned(tokenizer, {"messages": messages}) == "The Baltic — deep.</s>"


def test_the_tokens_are_those_that_the_model_is_asked_with(tokenizer: Any) -> None:
    (example,) = Encoder(tokenizer, max_length=512).encode([TALK], assistant_only="auto").rows
    assert example["input_ids"] == tokenizer.apply_chat_template(TALK["messages"], tokenize=True)["input_ids"]
    assert len(example["labels"]) == len(example["input_ids"])


def test_all_of_a_text_is_learned_and_that_it_ends(tokenizer: Any) -> None:
    assert _learned(tokenizer, {"text": "The sea is wide"}) == "The sea is wide</s>"
    assert _learned(tokenizer, {"text": "It ends.</s>"}) == "It ends.</s>"


def test_where_turns_cannot_be_told_apart_all_is_learned_unless_that_is_refused(tmp_path: Path) -> None:
    encoder = Encoder(tiny.tokenizer(tmp_path, template=FORGETFUL), max_length=512)
    found = encoder.encode([TALK], assistant_only="auto")
    assert found.blurred
    assert found.rows[0]["labels"] == found.rows[0]["input_ids"]
    with pytest.raises(InvalidRequest, match="assistant_only_loss is true"):
        encoder.encode([TALK], assistant_only=True)


def test_all_is_learned_when_that_is_asked_for(tokenizer: Any) -> None:
    found = Encoder(tokenizer, max_length=512).encode([TALK], assistant_only=False)
    assert found.rows[0]["labels"] == found.rows[0]["input_ids"]
    assert not found.blurred


def test_long_ones_are_cut_and_those_that_teach_nothing_then_are_left_out(tokenizer: Any) -> None:
    short = {"messages": [_message("user", "?"), _message("assistant", "The Rhine, the Danube.")]}
    found = Encoder(tokenizer, max_length=20).encode([TALK, short], assistant_only="auto")
    assert (found.cut, found.empty, len(found.rows)) == (2, 1, 1)
    assert len(found.rows[0]["input_ids"]) == 20


def test_a_refusal_of_the_template_is_told(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="refuses a conversation: no such role"):
        Encoder(tokenizer, max_length=64).encode([{"messages": [_message("judge", "No.")]}], assistant_only="auto")
    without = Encoder(tiny.tokenizer(tmp_path, template=None), max_length=64)
    with pytest.raises(InvalidRequest, match="cannot be trained on conversations"):
        without.encode([TALK], assistant_only="auto")
