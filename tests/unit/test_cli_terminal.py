"""What a person at a real terminal sees: the commands run behind a pseudo-terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.unit.stand_in import KEY, StandIn, running

TIMEOUT_S = 20


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    with running() as stand_in:
        monkeypatch.setenv("MOC_URL", stand_in.url)
        monkeypatch.setenv("MOC_KEY", KEY)
        monkeypatch.setenv("MOC_DATA_DIR", str(tmp_path))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        yield stand_in


class Terminal:
    """A command at a terminal of its own, which Ctrl-C reaches."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moc", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def expect(self, text: str) -> str:
        """Read until this text was printed; returns all up to it and forgets it."""
        while text not in self.seen:
            received = self._read()
            assert received, f"ended without {text!r}: {self.seen!r}"
            self.seen += received
        before, _, self.seen = self.seen.partition(text)
        return before

    def say(self, text: str) -> None:
        """Type a line."""
        os.write(self._ours, f"{text}\n".encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self._process.pid, signal.SIGINT)

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C until it is heard: one that comes just before readline waits for a key is not."""
        self.interrupt()
        while not select.select([self._ours], [], [], 2)[0]:
            self.interrupt()

    def end(self) -> tuple[int, str]:
        """Read to the end; the exit code and what else was printed."""
        while received := self._read():
            self.seen += received
        return self._process.wait(TIMEOUT_S), self.seen

    def _read(self) -> str:
        try:
            return os.read(self._ours, 65536).decode()
        except OSError:
            return ""


@pytest.mark.timeout(TIMEOUT_S)
def test_a_conversation_keeps_its_history_and_ctrl_c_stops_only_the_answer(stand_in: StandIn) -> None:
    with Terminal("chat", "endless", "--system", "Be brief.") as terminal:
        terminal.expect("> ")
        terminal.say("first")
        terminal.expect("you said")
        terminal.expect("first")
        terminal.interrupt()
        terminal.expect("[stopped]")
        terminal.expect("> ")
        assert stand_in.stream_closed.wait(5)
        terminal.say("second")
        terminal.expect("second")
        terminal.expect("second")
        terminal.interrupt()
        terminal.expect("> ")
        said = [message["content"] for message in stand_in.last("/v1/chat/completions")[1]["messages"]]
        assert (said[0], said[1], said[3]) == ("Be brief.", "first", "second")
        assert said[2].startswith("you said")
        terminal.say("/clear")
        terminal.expect("> ")
        terminal.interrupt_prompt()
        terminal.expect("> ")
        terminal.say("/exit")
        assert terminal.end()[0] == 0


@pytest.mark.timeout(TIMEOUT_S)
def test_a_failed_turn_leaves_the_conversation_usable(stand_in: StandIn) -> None:
    with Terminal("chat", "missing") as terminal:
        terminal.expect("> ")
        terminal.say("hello")
        terminal.expect("moc: openai no")
        terminal.expect("> ")
        terminal.say("\x04")
        assert terminal.end()[0] == 0


@pytest.mark.timeout(TIMEOUT_S)
def test_ctrl_c_ends_a_single_question(stand_in: StandIn) -> None:
    with Terminal("chat", "endless", "hello") as terminal:
        terminal.expect("hello")
        terminal.interrupt()
        code, rest = terminal.end()
    assert (code, "Traceback" in rest) == (130, False)


@pytest.mark.timeout(TIMEOUT_S)
def test_a_model_cannot_drive_the_terminal(stand_in: StandIn) -> None:
    with Terminal("chat", "echo", "hello") as terminal:
        code, seen = terminal.end()
    assert (code, "\x1b[2J" in seen, "[2Jhello" in seen) == (0, False, True)


@pytest.mark.timeout(TIMEOUT_S)
def test_what_a_program_wrote_is_shown_and_drives_nothing(stand_in: StandIn) -> None:
    with Terminal("jobs", "logs", "job-1") as terminal:
        code, seen = terminal.end()
    assert (code, seen.replace("\r\n", "\n")) == (0, "\n 1%|x\n99%|x\n^[[31mred\\x9b\n")


@pytest.mark.timeout(TIMEOUT_S)
def test_tables_have_colours_and_removing_asks_first(stand_in: StandIn) -> None:
    with Terminal("models", "list") as terminal:
        code, seen = terminal.end()
    assert (code, "\x1b[32mready" in seen) == (0, True)
    with Terminal("models", "remove", "echo") as terminal:
        terminal.expect("Remove every version of echo?")
        terminal.say("n")
        assert terminal.end()[0] == 1
    assert not any(method == "DELETE" for method, *_ in stand_in.requests)


@pytest.mark.timeout(TIMEOUT_S)
def test_pulling_and_loading_show_progress(stand_in: StandIn) -> None:
    with Terminal("models", "pull", "echo") as terminal:
        code, seen = terminal.end()
    assert (code, "pulling echo" in seen, "echo@2 is here" in seen) == (0, True, True)
    with Terminal("models", "load", "echo") as terminal:
        code, seen = terminal.end()
    assert (code, "loading echo" in seen, "echo@2 is ready" in seen) == (0, True, True)
