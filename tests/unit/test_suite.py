"""Suites: what they say, what is refused of them, and where."""

import json
from pathlib import Path
from typing import Any

import pytest

from moc.cli.evaluate import suite_document
from moc.kernel.errors import InvalidRequest
from moc.learning.suite import Choice, Question, Suite, items_of

QUESTION = {"prompt": "2+2?", "expected": "4"}
CHOICE = {"prompt": "The sky is", "choices": ["blue", "green"], "answer": "blue"}


def suite(*tasks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "s", "tasks": [{"name": f"t{number}", **task} for number, task in enumerate(tasks)], **fields}


def exact(**fields: Any) -> dict[str, Any]:
    return {"type": "exact_match", "items": [QUESTION], **fields}


def test_a_suite_has_defaults_and_items_have_ids() -> None:
    parsed = Suite.parse(suite(exact(), {"type": "multiple_choice", "items": [CHOICE, {**CHOICE, "id": "sky"}]}))
    assert parsed.defaults.max_tokens == 128
    assert [item.id for item in items_of(parsed.tasks[0], {})] == ["0"]
    assert [item.id for item in items_of(parsed.tasks[1], {})] == ["0", "sky"]


def test_items_of_a_file_come_after_those_of_the_suite(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text(f"{json.dumps(QUESTION)}\n\n{json.dumps({**QUESTION, 'id': 'x'})}\n")
    (task,) = Suite.parse(suite(exact(data={"file": "file-1"}))).tasks
    assert [item.id for item in items_of(task, {"file-1": data})] == ["0", "1", "x"]
    (task,) = Suite.parse(suite(exact(data={"file": "file-1"}, limit=2))).tasks
    assert len(items_of(task, {"file-1": data})) == 2


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"prompt": "a", "expcted": "b"}', "^data:1: the task t0: .*did you mean `expected`"),
        (b'\n{"prompt": "a"', "^data:2: .*no JSON"),
        (b'{"prompt": "\xff", "expected": "b"}', "^data:1: .*no JSON"),
        (b'{"id": "0", "prompt": "a", "expected": "b"}', "same id"),
        (b'{"prompt": "a", "expected": []}', "names nothing"),
        (b"1", "^data:1: "),
        (b'{"prompt": "' + b"a" * 2**20 + b'"}', "at most"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    data = tmp_path / "data"
    data.write_bytes(content)
    (task,) = Suite.parse(suite(exact(data={"file": "file-1"}))).tasks
    with pytest.raises(InvalidRequest, match=told):
        items_of(task, {"file-1": data})


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"name": "s", "taskz": []}, "did you mean `tasks`"),
        (suite(), "tasks"),
        (suite(exact(ignored=["case"])), r"tasks\[0\]: .*did you mean `ignore`"),
        (suite(exact(ignore=["Case"])), r"tasks\[0\].ignore\[0\]: .*there are case, punctuation, whitespace"),
        (suite({"type": "exactly"}), "there are exact_match, contains"),
        (
            suite({"type": "json_schema", "schema": {"items": {"type": "objekt"}}, "items": [{"prompt": "a"}]}),
            r"tasks\[0\].schema.items.type: is not a JSON schema: 'objekt' is not one of \['array'.*'string'\]",
        ),
        (
            suite({"type": "json_schema", "schema": {"$schema": 2020}, "items": [{"prompt": "a"}]}),
            r"tasks\[0\].schema.\$schema: is not a JSON schema",
        ),
        (suite(exact(items=[])), "neither `items` nor `data`"),
        (suite(exact(items=[{"prompt": "a"}])), r"tasks\[0\].items\[0\]: .*`expected`"),
        (suite(exact(name="same"), exact(name="same")), "same name"),
        (suite(exact(max_tokens=0)), r"tasks\[0\].max_tokens"),
        (suite({"type": "multiple_choice", "items": [{**CHOICE, "answer": "red"}]}), "none of the 2 choices"),
        (suite({"type": "multiple_choice", "items": [{**CHOICE, "answer": 2}]}), "none of the 2 choices"),
        (suite({"type": "regex", "items": [{"prompt": "a", "expected": "("}]}), "no pattern"),
        (
            suite(exact(api="completion", items=[{"prompt": [{"role": "user", "content": "a"}], "expected": "b"}])),
            "chat",
        ),
        (suite({"type": "harness", "data": {"file": "f"}, "config": {"process_docs": "x"}}), "`process_docs` is not"),
        (
            suite({"type": "harness", "data": {"file": "f"}, "config": {"metric_list": [{"metric": "code_eval"}]}}),
            "'code_eval' is not taken",
        ),
        (
            suite({"type": "harness", "data": {"file": "f"}, "config": {"metric_list": [{"hf_evaluate": True}]}}),
            "`hf_evaluate` is not",
        ),
        (suite({"type": "harness", "data": {"file": "f"}, "config": {"output_type": "x"}}), "'x' is none of"),
        ([], "Expected `object`"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(document: Any, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        Suite.parse(document)


def test_suites_that_measure_the_same_say_the_same() -> None:
    one, other = (Suite.parse(suite(exact(data={"file": name}))) for name in ("file-1", "file-2"))
    assert one.with_contents({"file-1": "ab"}) == other.with_contents({"file-2": "ab"})
    assert one.with_contents({"file-1": "ab"}) != other.with_contents({"file-2": "cd"})


def test_a_choice_is_right_by_its_place_or_its_text() -> None:
    assert Choice(prompt="a", choices=("x", "y"), answer=1).right == 1
    assert Choice(prompt="a", choices=("x", "y"), answer="y").right == 1
    assert Question(prompt="a", expected="x").right == ("x",)


def test_a_file_with_an_error_is_told_of_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(
        "name: s\ntasks:\n  - name: t\n    type: exact_match\n    items:\n      - {prompt: a, expectd: b}\n"
    )
    with pytest.raises(InvalidRequest, match=r"eval.yaml:6: .*did you mean `expected`"):
        suite_document(path, None, False)  # type: ignore[arg-type]
    path.write_text("name: s\ntasks:\n  - {name: t, type: perplexity, data: none.jsonl}\n")
    with pytest.raises(InvalidRequest, match="there is no file"):
        suite_document(path, None, False)  # type: ignore[arg-type]
    path.write_text("name: s\ntasks:\n  - {name: t, type: perplexity, data: /etc/hostname}\n")
    with pytest.raises(InvalidRequest, match="does not lie below its folder"):
        suite_document(path, None, False)  # type: ignore[arg-type]
    path.write_text("name: s\ntasks:\n  - name: t\n    type: exact_match\n    name: u\n")
    with pytest.raises(InvalidRequest, match=r"eval.yaml:5: tasks\[0\].name is there twice \(first on line 3\)"):
        suite_document(path, None, False)  # type: ignore[arg-type]
    path.write_text("name: s\ntasks:\n- type: json_schema\n  name: t\n  items: [prompt: a]\n  schema: {type: x}")
    with pytest.raises(InvalidRequest, match=r"eval.yaml:6: tasks\[0\].schema.type: is not a JSON schema: "):
        suite_document(path, None, False)  # type: ignore[arg-type]
    path.write_text("name: s\ntasks:\n  - {name: t, type: harness, config: h.yaml, data: h.yaml}\n")
    (tmp_path / "h.yaml").write_text("task: a\ntask: b\n")
    with pytest.raises(InvalidRequest, match=r"h.yaml:2: task is there twice"):
        suite_document(path, None, False)  # type: ignore[arg-type]
    path.write_text("name: [")
    with pytest.raises(InvalidRequest, match="not YAML"):
        suite_document(path, None, False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "task",
    [
        {"type": "contains", "items": [{"prompt": "?", "expected": ""}]},
        {"type": "contains", "ignore": ["punctuation"], "items": [{"prompt": "?", "expected": ["a", "?"]}]},
        {"type": "regex", "items": [{"prompt": "?", "expected": ""}]},
    ],
)
def test_what_every_answer_would_be_right_by_is_refused(task: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"tasks\[0\].items\[0\]: an `expected` says nothing"):
        Suite.parse(suite(task))


def test_an_answer_that_says_nothing_may_be_the_right_one() -> None:
    nothing = {"prompt": "?", "expected": ""}
    Suite.parse(suite(exact(items=[nothing]), {"type": "regex", "whole": True, "items": [nothing]}))


@pytest.mark.parametrize("kwargs", [{"top_k": 5}, {"untill": ["."]}, ["until"]])
def test_generation_that_is_not_taken_of_a_harness_task_is_refused(kwargs: Any) -> None:
    config = {"output_type": "generate_until", "generation_kwargs": kwargs}
    task = {"type": "harness", "data": {"file": "file-1"}, "config": config}
    with pytest.raises(InvalidRequest, match=r"tasks\[0\].config.generation_kwargs: "):
        Suite.parse(suite(task))
