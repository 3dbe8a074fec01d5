"""`moc jobs`, against a coordinator whose programs do what the test says."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from moc.cli.main import main
from tests.rest_stack import RestStack

Run = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]
EXAMPLES = Path(__file__).parents[2] / "examples"
SUITE = """
name: sums
tasks:
  - name: sums
    type: exact_match
    items:
      - {prompt: "1 + 1 =", expected: "2"}
"""
TUNE = ("jobs", "submit", "tune")
SFT = ("jobs", "submit", "sft", "--model", "smollm2", "--name", "zorblax")


@pytest.fixture
def run(rest_stack: RestStack, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command, in a thread: its exit status, what it printed, and what it complained of."""

    def called(arguments: tuple[str, ...]) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["--url", rest_stack.rest.url, "--key", rest_stack.key, *arguments])
        return int(str(ended.value.code))

    async def run(*arguments: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(called, arguments)
        return status, *capsys.readouterr()

    return run


async def test_a_training_is_submitted_with_its_files(rest_stack: RestStack, run: Run, tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "one"}\n')
    settings = ("--set", "epochs=3", "--set", "learning_rate=1e-4", "--set", "lora_targets=[q_proj]")
    terms = ("--priority", "4", "--memory", "1GiB", "--seed", "9", "--result", "merged", "--validation", "file-known")
    status, out, _ = await run(*SFT, "--data", str(data), *settings, *terms, "--json")
    job = json.loads(out)
    (file,) = rest_stack.files.all()
    assert (status, job["training_file"], job["validation_file"]) == (0, file.id, "file-known")
    assert job["hyperparameters"] == {"epochs": 3, "learning_rate": 1e-4, "lora_targets": ["q_proj"]}
    assert (job["priority"], job["memory_bytes"], job["seed"], job["result"]) == (4, 2**30, 9, "merged")
    shown = (await run("jobs", "show", job["id"]))[1]
    assert "zorblax" in shown
    assert "epochs=3" in shown
    assert json.loads((await run("jobs", "show", job["id"], "--json"))[1])["id"] == job["id"]


async def test_a_job_is_followed_to_its_end(rest_stack: RestStack, run: Run) -> None:
    following = asyncio.create_task(run(*SFT, "--data", "file-known", "--follow"))
    program = await rest_stack.programs.started()
    program.tell(type="metrics", step=1, total_steps=2, metrics={"train_loss": 1.25})
    program.tell(type="message", message="look out", level="warn")
    program.end(0)
    status, out, err = await following
    assert (status, "job-" in err) == (0, True)
    assert "Step 1/2: train_loss=1.25" in out
    assert "warn: look out" in out
    assert "zorblax@1" in out


async def test_a_job_that_fails_fails_its_command(rest_stack: RestStack, run: Run) -> None:
    waiting = asyncio.create_task(run("jobs", "submit", "script", "--command", "python 'my job.py'", "--wait"))
    program = await rest_stack.programs.started()
    program.tell(type="error", reason="ProgramFailed", message="it went wrong")
    program.log = "Traceback\n"
    program.end(1)
    status, _, err = await waiting
    assert status == 1
    assert "it went wrong" in err
    (job,) = rest_stack.jobs.all()
    assert job.spec.options == {"command": ["python", "my job.py"], "workdir": str(Path.cwd())}
    assert await run("jobs", "logs", job.id, "--follow") == (0, "Traceback\n", "")
    assert (await run("jobs", "wait", job.id))[0] == 1


async def test_jobs_are_paused_resumed_cancelled_and_removed(rest_stack: RestStack, run: Run) -> None:
    rest_stack.kind.gate.clear()
    job_id = json.loads((await run(*SFT, "--data", "file-known", "--json"))[1])["id"]
    for verb, told in (
        ("pause", "is validating, and is to pause"),
        ("resume", "is validating"),
        ("cancel", "is cancelled"),
    ):
        assert await run("jobs", verb, job_id) == (0, f"job {job_id} {told}\n", "")
    assert json.loads((await run("jobs", "list", "--status", "cancelled", "--json"))[1])["jobs"][0]["id"] == job_id
    assert "zorblax" in (await run("jobs", "list"))[1]
    events = json.loads((await run("jobs", "events", job_id, "--json"))[1])["events"]
    assert len((await run("jobs", "events", job_id))[1].splitlines()) == len(events)
    assert json.loads((await run("jobs", "checkpoints", job_id, "--json"))[1]) == {"checkpoints": []}
    assert await run("jobs", "remove", job_id) == (0, "", "")
    assert (await run("jobs", "show", job_id))[0] == 1


async def test_an_evaluation_is_submitted(rest_stack: RestStack, run: Run, tmp_path: Path) -> None:
    suite = tmp_path / "eval.yaml"
    suite.write_text(SUITE)
    await rest_stack.load("smollm2")
    status, out, _ = await run("jobs", "submit", "evaluate", "--model", "smollm2", "--suite", str(suite), "--json")
    job = json.loads(out)
    assert (status, job["type"], job["model"], job["options"]["suite"]["name"]) == (0, "evaluate", "smollm2@1", "sums")


@pytest.mark.parametrize("example", ["evaluate", "finetune"])
async def test_the_suites_of_the_examples_are_taken_as_they_are(rest_stack: RestStack, run: Run, example: str) -> None:
    await rest_stack.load("smollm2")
    suite = EXAMPLES / example / "suite.yaml"
    status, out, err = await run("evaluate", "run", "--model", "smollm2", "--suite", str(suite), "--json")
    assert status == 0, err
    assert json.loads(out)["model"] == "smollm2@1"


async def test_what_was_sent_for_a_job_that_is_refused_is_taken_back(
    rest_stack: RestStack, run: Run, tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text('{"text": "one"}\n')
    status, _, err = await run(*SFT, "--data", str(data), "--name", "a" * 300)
    assert (status, "`name` is longer" in err) == (1, True)
    assert rest_stack.files.all() == []


async def test_a_suite_sends_only_what_lies_below_its_folder(rest_stack: RestStack, run: Run, tmp_path: Path) -> None:
    suite = tmp_path / "suites" / "eval.yaml"
    suite.parent.mkdir()
    suite.write_text("name: a\ntasks: [{name: a, type: exact_match, data: ../mine.jsonl}]\n")
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1 + 1 =", "expected": "2"}\n')
    await rest_stack.load("smollm2")
    for command in (("evaluate", "run"), ("jobs", "submit", "evaluate")):
        arguments = (*command, "--model", "smollm2", "--suite", str(suite))
        status, _, err = await run(*arguments)
        assert (status, "../mine.jsonl does not lie below its folder" in err) == (1, True), err
        assert rest_stack.files.all() == []
        status, _, err = await run(*arguments, "--allow-outside", "--json")
        assert status == 0, err
        (file,) = rest_stack.files.all()
        assert file.filename == "mine.jsonl"
        await rest_stack.files.remove(file.id, actor="test")


async def test_a_suite_that_is_wrong_is_told_by_line_before_anything_is_sent(
    rest_stack: RestStack, run: Run, tmp_path: Path
) -> None:
    suite = tmp_path / "eval.yaml"
    suite.write_text("name: a\ntasks:\n  - name: a\n    type: exact_match\n    data: a.jsonl\n    max_token: 7\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n')
    status, _, err = await run("evaluate", "run", "--model", "smollm2", "--suite", str(suite))
    assert (status, f"{suite}:3: " in err, "max_tokens" in err) == (1, True, True), err
    assert rest_stack.files.all() == []


async def test_rows_of_a_suite_are_told_by_file_and_line_before_anything_is_sent(
    rest_stack: RestStack, run: Run, tmp_path: Path
) -> None:
    suite, data = tmp_path / "eval.yaml", tmp_path / "x.csv"
    suite.write_text("name: a\ntasks: [{name: m, type: exact_match, data: x.csv}]\n")
    for rows, told in (("prompt,expected\n", f"{data}:1: the task m: no JSON"), ('{"prompt": "a"}\n', "`expected`")):
        data.write_text(rows)
        status, _, err = await run("evaluate", "run", "--model", "smollm2", "--suite", str(suite))
        assert (status, told in err, "sending" in err) == (1, True, False), err
    assert rest_stack.files.all() == []


async def test_what_an_evaluation_waits_for_is_called_that(rest_stack: RestStack, run: Run, tmp_path: Path) -> None:
    suite = tmp_path / "eval.yaml"
    suite.write_text(SUITE)
    await rest_stack.load("smollm2")
    for _ in range(3):  # two may run at once
        out = (await run("evaluate", "run", "--model", "smollm2", "--suite", str(suite), "--json"))[1]
    job_id = json.loads(out)["id"]
    await rest_stack.jobs.wait(job_id, lambda job: job.waits_for.startswith("a place: "))
    told = (await run("evaluate", "show", job_id))[1].splitlines()
    assert [line for line in told if line.startswith(("waits for", "message"))] == [
        "waits for  a place: 2 jobs may run at once, and others are before it"
    ]


async def test_a_search_is_submitted(rest_stack: RestStack, run: Run, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("epochs: {low: 1, high: 3}\n")
    arguments = ("--base", "sft", "--model", "smollm2", "--data", "file-known", "--name", "best", "--trials", "3")
    status, out, _ = await run("jobs", "submit", "tune", *arguments, "--space", str(space), "--set", "seed=1", "--json")
    job = json.loads(out)
    options = job["options"]
    assert (status, job["type"], job["name"], options["trials"]) == (0, "tune", "best", 3)
    assert options["space"] == {"epochs": {"low": 1, "high": 3}}
    assert (options["base"]["type"], options["base"]["training_file"]) == ("sft", "file-known")


async def test_a_space_counts_every_key(run: Run, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("lr:\n  choices: [1]\nlr:\n  choices: [2]\n")
    status, _, err = await run(*TUNE, "--base", "script", "--space", str(space))
    assert (status, "space.yaml:3: lr is there twice (first on line 1)" in " ".join(err.split())) == (2, True), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*SFT, "--data", "nowhere.jsonl"), "nowhere.jsonl"),
        ((*SFT, "--data", "file-known", "--set", "epochs"), "NAME=VALUE"),
        ((*SFT, "--data", "file-known", "--set", "a=[1"), "YAML"),
        ((*SFT, "--data", "file-known", "--memory", "lots"), "lots"),
        (("jobs", "submit", "script", "--command", "a 'b"), "split"),
        ((*TUNE, "--base", "script", "--space", "nowhere.yaml"), "nowhere.yaml"),
        ((*TUNE, "--base", "xxx", "--space", "space.yaml"), "'sft', 'supervised', 'dpo', 'script'"),
        ((*TUNE, "--base", "sft", "--space", "space.yaml"), "--model"),
        ((*SFT, "--data", "file-known", "--result", "gguf"), "'adapter', 'merged'"),
    ],
)
async def test_bad_usage_is_told(run: Run, arguments: tuple[str, ...], words: str) -> None:
    status, _, err = await run(*arguments)
    assert status == 2
    assert words in err
