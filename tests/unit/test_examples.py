"""Rows as tokens: what is learned of them, and what is only read."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

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


def _preference(asked: str, better: str, worse: str, **more: Any) -> dict[str, Any]:
    sides = {"prompt": ("user", asked), "chosen": ("assistant", better), "rejected": ("assistant", worse)}
    return {**{name: [_message(role, text)] for name, (role, text) in sides.items()}, **more}


CALLING = (
    "{% for tool in tools or [] %}{{ tool|tojson }}{% endfor %}{% for message in messages %}"
    "<s>{{ message['role'] }}: {{ message['content'] }}{{ (message['tool_calls'] or [])|tojson }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def test_a_preference_is_a_prompt_and_two_answers_in_the_models_words(tokenizer: Any) -> None:
    (row,) = Encoder(tokenizer, max_length=512).prefer([_preference("A river?", "The Rhine.", "No.")]).rows
    assert {name: tokenizer.decode(ids) for name, ids in row.items()} == {
        "prompt_ids": "<s>user: A river?</s><s>assistant: ",
        "chosen_ids": "The Rhine.</s>",
        "rejected_ids": "No.</s>",
    }
    texts = {"prompt": "A river: ", "chosen": "Rhine", "rejected": "none"}
    (row,) = Encoder(tokenizer, max_length=512).prefer([texts]).rows
    assert tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) == "A river: Rhine</s>"


def test_a_preference_has_no_more_in_it_than_its_row(tmp_path: Path) -> None:
    encoder = Encoder(tiny.tokenizer(tmp_path, template=CALLING), max_length=4096)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": {}}}}
    other = {"type": "function", "function": {"name": "g", "parameters": {"b": {"type": "string"}}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    rows = [
        _preference("1", "yes", "no"),
        _preference("2", "yes", "no", tools=[tool]),
        _preference("3", "yes", "no", tools=[other]),
        {**_preference("4", "-", "no"), "chosen": [_message("assistant", "", tool_calls=[call])]},
    ]
    alone = [encoder.prefer([row]).rows[0] for row in rows]
    assert encoder.prefer(rows).rows == alone
    assert [dict(row) for row in Dataset.from_list(alone)] == alone


def test_preferences_that_are_cut_are_counted_and_left_out_where_nothing_is_left(tokenizer: Any) -> None:
    rows = [
        _preference("A?", "Yes.", "No."),
        _preference("A?", "Yes." + "a" * 100, "No."),
        _preference("A?", "a" * 100 + "Yes", "a" * 100 + "No"),
        _preference("A?" * 100, "Yes.", "No."),
    ]
    found = Encoder(tokenizer, max_length=60).prefer(rows)
    assert (found.cut, found.empty, len(found.rows)) == (3, 2, 2)
    assert all(len(row["prompt_ids"] + row["chosen_ids"]) <= 60 for row in found.rows)


def test_all_examples_begin_with_the_first_token_once(tokenizer: Any) -> None:
    first = tokenizer.pad_token_id
    encoder = Encoder(tokenizer, max_length=512, first=first)
    plain = Encoder(tokenizer, max_length=512).encode([TALK], assistant_only="auto").rows[0]
    talk = encoder.encode([TALK], assistant_only="auto").rows[0]
    assert talk == {"input_ids": [first, *plain["input_ids"]], "labels": [IGNORED, *plain["labels"]]}
    (text,) = encoder.encode([{"text": "Sea"}], assistant_only="auto").rows
    assert text["input_ids"][0] == first
    (row,) = encoder.prefer([_preference("A?", "Yes.", "No.")]).rows
    assert row["prompt_ids"][0] == first
    begun = Encoder(tokenizer, max_length=512, first=tokenizer.bos_token_id).encode([TALK], assistant_only="auto")
    assert begun.rows == [plain]
