"""What users do with their rows before anything learns from them: by both clients and the commands, over real HTTP."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moc.cli.main import main
from moc.client import AsyncClient, Client
from moc.inference.request import Reply, Request
from moc.kernel.errors import InvalidRequest, NoCapacity, NotFound
from tests.rest_stack import INFO, EchoLink, RestStack, running

CHAT = {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]}
PAIR = {"prompt": "one two ", "chosen": "three", "rejected": "three four"}
Run = Callable[..., Awaitable[tuple[int, str, str]]]


class Words(EchoLink):
    """Makes a token of every word."""

    def __init__(self) -> None:
        super().__init__(msgspec.structs.replace(INFO, kinds=("tokenize",)))

    async def infer(self, request: Request) -> Reply:
        asked = json.loads(bytes(request.body))
        said = asked["prompt"] if "prompt" in asked else " ".join(each["content"] for each in asked["messages"])
        count = len(said.split()) + asked.get("add_generation_prompt", False)
        return Reply(json.dumps({"count": count, "max_model_len": 64, "tokens": [7] * count}).encode())


@pytest.fixture
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RestStack]:
    async with running(tmp_path_factory.mktemp("data")) as started:
        await started.load("words")
        resident = started.manager.find("words")
        assert resident is not None
        started.workers.links[resident.worker_id] = Words()
        yield started


@pytest.fixture
def run(stack: RestStack, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command, in a thread: its exit status, what it printed, and what it complained of."""

    def called(arguments: tuple[str, ...]) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["--url", stack.rest.url, "--key", stack.key, *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    async def run(*arguments: Any) -> tuple[int, str, str]:
        code = await asyncio.to_thread(called, tuple(map(str, arguments)))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


async def test_both_clients_keep_files(stack: RestStack, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", CHAT)
    async with AsyncClient(stack.rest.url, stack.key) as client:
        first = await client.files.add(path)
        second = await client.files.add(str(path), purpose="evals", filename="eval.jsonl")
        page = await client.files.list(limit=1)
        assert ([file["id"] for file in page["items"]], page["next"]) == ([first["id"]], first["id"])
        assert (await client.files.list(after=page["next"]))["items"] == [await client.files.show(second["id"])]
        assert (second["filename"], second["bytes"]) == ("eval.jsonl", path.stat().st_size)
        with pytest.raises(InvalidRequest, match=r"nowhere\.jsonl cannot be read: No such file"):
            await client.files.add(tmp_path / "nowhere.jsonl")

    def blocking() -> None:
        with Client(stack.rest.url, stack.key) as client:
            assert client.files.content(client.files.add(path)["id"]) == path.read_bytes()
            assert [file["purpose"] for file in client.files.list(purpose="evals")["items"]] == ["evals"]
            client.files.remove(second["id"])
            with pytest.raises(NotFound):
                client.files.show(second["id"])

    await asyncio.to_thread(blocking)


async def test_who_sends_too_much_is_told_why(stack: RestStack, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(bytes(8 * 2**20))
    stack.disk.adjust(limit_bytes=2**20)
    async with AsyncClient(stack.rest.url, stack.key) as client:
        with pytest.raises(NoCapacity, match="disk_quota"):
            await client.files.add(path)
        assert (await client.files.list())["items"] == []


async def test_the_commands_keep_files(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", CHAT)
    code, out, _ = await run("files", "add", path, "--purpose", "evals")
    file_id = out.strip()
    assert code == 0
    shown = json.loads((await run("files", "show", file_id, "--json"))[1])
    assert json.loads((await run("files", "list", "--json"))[1]) == {"files": [shown], "next": None}
    assert [line.split()[:2] for line in (await run("files", "list"))[1].splitlines()] == [
        ["ID", "NAME"],
        [file_id, "rows.jsonl"],
    ]
    assert shown["sha256"] in (await run("files", "show", file_id))[1]
    assert (await run("files", "content", file_id))[1] == path.read_text()
    assert (await run("files", "content", file_id, "-o", tmp_path / "copy"))[:2] == (0, "")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert (await run("files", "remove", file_id))[0] == 0
    code, _, complaint = await run("files", "show", file_id)
    assert (code, f"there is no file '{file_id}'" in complaint) == (1, True)


async def test_tokens_are_counted_by_both_clients_and_a_command(stack: RestStack, run: Run) -> None:
    async with AsyncClient(stack.rest.url, stack.key) as client:
        assert await client.tokenize("words", "a b c") == {"count": 3, "max_model_len": 64, "tokens": [7, 7, 7]}
        for begun in (False, True):
            told = await client.tokenize("words", CHAT["messages"], add_generation_prompt=begun)
            assert told["count"] == 3 + begun
        with pytest.raises(NotFound, match="nobody"):
            await client.tokenize("nobody", "a")
    assert (await run("tokenize", "words", "a b"))[1] == "2 tokens of 64\n7 7\n"


async def test_a_file_without_rows_is_not_fit_to_learn_from(run: Run, tmp_path: Path) -> None:
    for content in ("", "\n \n"):
        path = tmp_path / "train.jsonl"
        path.write_text(content)
        code, out, _ = await run("data", "check", path)
        assert (code, "0 good, 0 broken" in out) == (1, True), out
        assert (await run("data", "split", path, "-o", tmp_path / "parts"))[0] != 0
        assert not (tmp_path / "parts").exists()


async def test_data_is_checked_line_by_line(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / "train.jsonl", CHAT, "nope", CHAT)
    valid = written(tmp_path / "valid.jsonl", CHAT)
    code, out, err = await run("data", "check", path, "--validation", valid)
    assert (code, err) == (1, "")
    assert "line 2: error: is not JSON" in out
    assert "line 3: repeat: says what line 1 says\n" in out
    assert "line 1: leak: validation: is line 1 of the training, too" in out
    told = json.loads((await run("data", "check", path, "--validation", valid, "--json"))[1])
    assert [file["rows"] for file in told["files"]] == [2, 1]
    assert told["files"][0]["errors"]["told"][0]["line"] == 2
    assert told["leaks"] == [{"training": 1, "validation": 1, "exact": True}]
    assert (await run("data", "check", valid))[0] == 0


async def test_tokens_of_rows_are_counted_as_a_model_does(run: Run, tmp_path: Path) -> None:
    longer = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "three four five"}]}
    path = written(tmp_path / "train.jsonl", *[CHAT] * 30, longer)
    code, out, _ = await run("data", "check", path, "--model", "words", "--max-length", 4)
    assert code == 0
    assert "tokens      3 to 5, mean 3, median 3, 95 % up to 3" in out
    assert "hint: 1 of 31 rows have more than 4 tokens, and would be cut" in out
    text = written(tmp_path / "text.jsonl", {"text": "one two three four five"})
    out = (await run("data", "check", text, "--model", "words", "--max-length", 4))[1]
    assert "hint: 1 of 1 rows have more than 4 tokens, and would be learned in parts" in out
    pairs = written(tmp_path / "pairs.jsonl", PAIR)
    told = json.loads((await run("data", "check", pairs, "--model", "words", "--max-length", 3, "--json"))[1])
    assert (told["files"][0]["tokens"]["max"], told["files"][0]["too_long"]) == (4, 1)
    code, _, complaint = await run("data", "check", path, "--model", "nobody")
    assert (code, "nobody" in complaint) == (1, True)
    assert "Traceback" not in complaint


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--format", "csv"), "none of chat, preference, text"), (("--max-length", "4"), "counted as a --model does")],
)
async def test_bad_usage_is_told(run: Run, tmp_path: Path, arguments: tuple[str, str], told: str) -> None:
    code, _, complaint = await run("data", "check", written(tmp_path / "a", CHAT), *arguments)
    assert (code, told in " ".join(complaint.split())) == (2, True)


async def test_rows_are_split(run: Run, tmp_path: Path) -> None:
    rows = [{"text": f"row {number}"} for number in range(20)]
    path = written(tmp_path / "all.jsonl", *rows)
    code, out, _ = await run("data", "split", path, "--share", 10, "-o", tmp_path / "parts")
    assert (code, len(out.splitlines())) == (0, 2)
    parts = [(tmp_path / "parts" / name).read_text().splitlines() for name in ("train.jsonl", "valid.jsonl")]
    assert [len(part) for part in parts] == [18, 2]
    assert sorted(json.loads(row)["text"] for part in parts for row in part) == sorted(row["text"] for row in rows)
    again = ("data", "split", path, "--share", 10, "--seed", 5, "-o", tmp_path / "parts")
    code, _, complaint = await run(*again)
    assert (code, "train.jsonl is there already; give --force" in complaint) == (1, True)
    assert (tmp_path / "parts" / "train.jsonl").read_text().splitlines() == parts[0]
    assert (await run(*again, "--force"))[0] == 0
    assert (tmp_path / "parts" / "train.jsonl").read_text().splitlines() != parts[0]
    broken = written(tmp_path / "broken.jsonl", "nope", *rows)
    code, _, complaint = await run("data", "split", broken, "-o", tmp_path / "none")
    assert (code, "line 1 is not JSON" in complaint, (tmp_path / "none").exists()) == (1, True, False)
    assert (await run("data", "check", tmp_path / "missing"))[0] == 1


@pytest.mark.parametrize("name", ["train.jsonl", "valid.jsonl"])
async def test_a_split_never_replaces_what_it_reads(run: Run, tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, *[{"text": f"row {number}"} for number in range(20)])
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        code, _, complaint = await run("data", "split", path, "-o", folder, "--force")
        assert (code, "would replace the rows that are parted" in complaint) == (1, True)
    assert {each.name for each in os.scandir(tmp_path)} == {name, "link"}
    assert path.read_bytes() == before


async def test_what_cannot_be_split_is_told(run: Run, tmp_path: Path) -> None:
    for rows, told in (([CHAT], "it has one row"), ([CHAT] * 3, "3 rows that all ask the same")):
        path = written(tmp_path / "rows.jsonl", *rows)
        code, _, complaint = await run("data", "split", path, "-o", tmp_path / "parts")
        assert (code, told in complaint, (tmp_path / "parts").exists()) == (1, True, False), complaint
    code, _, complaint = await run("data", "split", path, "-o", tmp_path / "parts", "--share", 0.1)
    assert (code, "give percent, such as 10" in " ".join(complaint.split())) == (2, True)
    taken = written(tmp_path / "taken")
    many = written(tmp_path / "many.jsonl", {"text": "a"}, {"text": "b"})
    code, _, complaint = await run("data", "split", many, "-o", taken)
    assert (code, "cannot be written" in complaint) == (1, True)


async def test_a_long_name_of_a_file_leaves_room_for_the_rest(run: Run, tmp_path: Path) -> None:
    path = written(tmp_path / f"{'a' * 200}.jsonl", CHAT)
    await run("files", "add", path)
    assert f" {'a' * 59}… " in (await run("files", "list"))[1]
    assert path.name in (await run("files", "list", "--json"))[1]
