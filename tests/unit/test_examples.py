"""Rows as tokens: what is learned of them, and what is only read."""

from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset

from moc.kernel.errors import InvalidRequest
from moc.workers.trainers.examples import IGNORED, Encoder, Examples
from tests import tiny

FORGETFUL = (
    "{% for message in messages %}<s>{{ message['role'] }}: "
    "{% if loop.last or message['role'] == 'user' %}{{ message['content'] }}{% else %}…{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
"""Leaves out what was said before, as templates do with thoughts."""


def _published(family: str) -> str:
    """The chat template of a family of models, as they have it."""
    return (Path(trl.__file__).parent / f"chat_templates/{family}.jinja").read_text("utf-8")


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


BACKWARDS = "{% for message in messages|reverse %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
"""Says last what was said first, so that no turn is where it was."""


def _of(tmp_path: Path, template: str, *rows: dict[str, Any], assistant_only: bool | str = "auto") -> Examples:
    encoder = Encoder(tiny.tokenizer(tmp_path, template=template), max_length=4096)
    return encoder.encode(rows, assistant_only=assistant_only)


def _texts(tokenizer: Any, found: Examples) -> list[tuple[str, str]]:
    """All of each example, and what is learned of it."""
    return [
        (tokenizer.decode(row["input_ids"]), tokenizer.decode([each for each in row["labels"] if each != IGNORED]))
        for row in found.rows
    ]


def test_where_turns_cannot_be_told_apart_all_is_learned_unless_that_is_refused(tmp_path: Path) -> None:
    found = _of(tmp_path, BACKWARDS, TALK, TALK)
    assert found.blurred == 2
    assert found.rows[0]["labels"] == found.rows[0]["input_ids"]
    with pytest.raises(InvalidRequest, match="assistant_only_loss is true"):
        _of(tmp_path, BACKWARDS, TALK, assistant_only=True)


def test_each_row_is_judged_by_itself(tokenizer: Any, tmp_path: Path) -> None:
    template = tiny.TEMPLATE.replace(
        "{% for", "{% if messages|length > 3 %}{{ messages[-1]['content'] }}{% endif %}{% for"
    )
    single = {"messages": [_message("user", "A river?"), _message("assistant", "The Rhine.")]}
    found = _of(tmp_path, template, single, TALK, single)
    assert found.blurred == 1
    learned = [learned for _, learned in _texts(tokenizer, found)]
    assert (learned[0], learned[2]) == ("The Rhine.</s>", "The Rhine.</s>")
    assert "And a sea?" in learned[1]


@pytest.mark.parametrize("assistant_only", [True, "auto"])
def test_a_turn_that_is_rewritten_once_others_follow_is_learned_as_the_last(
    tokenizer: Any, tmp_path: Path, assistant_only: bool | str
) -> None:
    found = _of(tmp_path, FORGETFUL, TALK, assistant_only=assistant_only)
    assert (found.blurred, found.parted) == (0, 1)
    assert _texts(tokenizer, found) == [
        ("<s>system: …</s><s>user: Name a river.</s><s>assistant: The Rhine.</s>", "The Rhine.</s>"),
        (
            "<s>system: …</s><s>user: Name a river.</s><s>assistant: …</s><s>user: And a sea?</s>"
            "<s>assistant: The Baltic — deep.</s>",
            "The Baltic — deep.</s>",
        ),
    ]


@pytest.mark.parametrize(("family", "end"), [("qwen3", "<|im_end|>\n"), ("phi3", "<|end|>\n</s>")])
def test_templates_of_models_that_rewrite_turns_let_every_answer_be_learned(
    tokenizer: Any, tmp_path: Path, family: str, end: str
) -> None:
    found = _of(tmp_path, _published(family), TALK)
    assert (found.blurred, found.parted) == (0, 1)
    thought = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    answers = [f"{thought}The Rhine.{end}", f"{thought}The Baltic — deep.{end}"]
    assert [learned for _, learned in _texts(tokenizer, found)] == answers


def test_an_answer_is_learned_with_its_header_where_a_prompt_ends_otherwise(tokenizer: Any, tmp_path: Path) -> None:
    thinking = tiny.TEMPLATE.replace("<s>assistant: {% endif", "<s>assistant: <think>{% endif")
    (only,) = _texts(tokenizer, _of(tmp_path, thinking, TALK))
    assert only[1] == "<s>assistant: The Rhine.</s><s>assistant: The Baltic — deep.</s>"


def test_the_weight_0_holds_whatever_else_is_learned(tokenizer: Any, tmp_path: Path) -> None:
    messages = [dict(message) for message in TALK["messages"]]
    messages[2]["weight"] = 0
    row = {"messages": messages}
    ((text, learned),) = _texts(tokenizer, _of(tmp_path, tiny.TEMPLATE, row, assistant_only=False))
    assert learned == text.replace("The Rhine.</s>", "")
    found = _of(tmp_path, _published("qwen3"), row)
    assert ["Rhine" in learned for _, learned in _texts(tokenizer, found)] == [False]
    for template, how in ((BACKWARDS, "auto"), (FORGETFUL, False)):
        found = _of(tmp_path, template, row, TALK, assistant_only=how)
        assert (found.refused, found.blurred, len(found.rows)) == (1, how == "auto", 1)


def test_all_is_learned_when_that_is_asked_for(tokenizer: Any) -> None:
    found = Encoder(tokenizer, max_length=512).encode([TALK], assistant_only=False)
    assert found.rows[0]["labels"] == found.rows[0]["input_ids"]
    assert not found.blurred


def test_long_ones_are_cut_and_those_that_teach_nothing_then_are_left_out(tokenizer: Any) -> None:
    short = {"messages": [_message("user", "?"), _message("assistant", "The Rhine, the Danube.")]}
    found = Encoder(tokenizer, max_length=20).encode([TALK, short], assistant_only="auto")
    assert (found.cut, found.empty, len(found.rows)) == (2, 1, 1)
    assert len(found.rows[0]["input_ids"]) == 20


def test_a_long_text_is_learned_in_parts(tokenizer: Any) -> None:
    text = "".join(f"{number} The sea is wide. " for number in range(40))
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    for first in (None, tokenizer.pad_token_id):
        found = Encoder(tokenizer, max_length=16, first=first).encode([{"text": text}], assistant_only="auto")
        assert (found.cut, found.empty, found.parted) == (0, 0, 1)
        assert max(len(row["input_ids"]) for row in found.rows) == 16
        assert all(first is None or row["input_ids"][0] == first for row in found.rows)
        learned = [token for row in found.rows for token in row["labels"][1:] if token != IGNORED]
        assert learned == (ids[1:] if first is None else ids)


def test_a_refusal_of_the_template_is_told(tokenizer: Any, tmp_path: Path) -> None:
    judged = {"messages": [_message("judge", "No."), _message("assistant", "Yes.")]}
    with pytest.raises(InvalidRequest, match="refuses a conversation: no such role"):
        Encoder(tokenizer, max_length=64).encode([judged], assistant_only="auto")
    with pytest.raises(InvalidRequest, match="refuses a conversation: can only concatenate str"):
        _of(tmp_path, "{% for each in messages %}{{ each.content + 1 }}{% endfor %}", TALK)
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


TOOL = {"type": "function", "function": {"name": "get", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city": "Köln"}'}}
ASKED = [_message("user", "How warm is it?")]
CALLED = [_message("assistant", "", tool_calls=[CALL])]
ANSWERED = [_message("tool", "12", tool_call_id="c1"), _message("assistant", "12 degrees")]


@pytest.mark.parametrize(
    ("family", "call"),
    [
        ("qwen2_5", '{"name": "get", "arguments": {"city": "Köln"}}'),
        ("llama3_1", '{"name": "get", "parameters": {"city": "Köln"}}'),
        ("qwen3", '{"name": "get", "arguments": {"city": "Köln"}}'),
        ("deepseekv3", '{"city": "Köln"}'),
    ],
)
def test_arguments_are_learned_as_what_their_text_says(tokenizer: Any, tmp_path: Path, family: str, call: str) -> None:
    found = _of(tmp_path, _published(family), {"messages": ASKED + CALLED + ANSWERED, "tools": [TOOL]})
    assert any(call in learned for _, learned in _texts(tokenizer, found))
    assert any("12 degrees" in learned for _, learned in _texts(tokenizer, found))


def test_what_a_template_leaves_out_of_a_row_with_tools_is_named(tokenizer: Any, tmp_path: Path) -> None:
    whole = {"messages": ASKED + CALLED + ANSWERED}
    answers = {"prompt": ASKED, "chosen": CALLED, "rejected": [_message("assistant", "No.")]}
    for family, row, name in (
        ("llama3", whole, "`tool_calls`"),
        ("llama3", {**TALK, "tools": [TOOL]}, "`tools`"),
        ("llama3", answers, "`tool_calls`"),
        ("phi3", {"messages": [*ASKED, _message("assistant", "Wait."), *ANSWERED]}, "messages of a tool"),
        ("qwen2_5", {**whole, "tools": [TOOL]}, None),
        ("qwen2_5", {**answers, "tools": [TOOL]}, None),
        ("llama3", TALK, None),
        ("llama3", {"text": "tools"}, None),
    ):
        encoder = Encoder(tiny.tokenizer(tmp_path, template=_published(family)), max_length=4096)
        assert encoder.left_out(row) == name


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
