"""What a file of rows is worth: how much there is, what is wrong with it, what it repeats, and what it would give away.

The rows are read one by one; kept of each are two digests and a few numbers.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moc.kernel.errors import InvalidRequest
from moc.learning.rows import Flaw, Format, Row, detect, rows

TOLD_MAX = 100
"""How many of a kind of finding are told one by one; all are counted."""

_FLAWS_SAID = 5
_FEW_ROWS = 10
_MUCH = 0.5
_NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long rows are."""

    min: int
    mean: float
    p50: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: Iterable[int]) -> "Lengths | None":
        """None when there are none."""
        found = sorted(lengths)
        if not found:
            return None
        last = len(found) - 1
        return cls(found[0], sum(found) / len(found), found[last // 2], found[round(last * 0.95)], found[-1])


@dataclass(frozen=True, slots=True)
class Repeat:
    """A row that says what the row at `first` says: `exact`, or but for case and spaces."""

    line: int
    first: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """The first of them, and how many there are."""

    told: tuple[Flaw, ...] = ()
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a file holds: `rows` good ones of a `format`, `errors` in others, `warnings` about some.

    `repeats` are rows that say the same again, `repeat_count` of them in all. `roles` counts messages by who says
    them. `longest` is how many tokens a row has at most. `hints` are about the whole. `rows_by_digest` and
    `rows_by_prompt` tell the first line of each.
    """

    format: Format
    rows: int
    errors: Findings
    warnings: Findings
    repeats: tuple[Repeat, ...]
    repeat_count: int
    characters: Lengths | None
    longest: int
    roles: Mapping[str, int]
    hints: tuple[str, ...]
    rows_by_digest: Mapping[bytes, int] = field(repr=False)
    rows_by_prompt: Mapping[bytes, int] = field(repr=False)

    def check(self, name: str) -> None:
        """InvalidRequest that says where the file called `name` is wrong, unless all of it can be learned from."""
        if not self.errors.count and self.rows:
            return
        if not self.errors.count:
            raise InvalidRequest(f"{name} has no rows; write one JSON object on each line")
        told = "; ".join(f"line {flaw.line} {flaw.message}" for flaw in self.errors.told[:_FLAWS_SAID])
        more = self.errors.count - min(len(self.errors.told), _FLAWS_SAID)
        rest = f"; and {more} more" if more else ""
        raise InvalidRequest(
            f"{name} has {self.errors.count} rows that cannot be learned from: {told}{rest}; "
            "`moc data check` tells of all",
            details={"lines": [flaw.line for flaw in self.errors.told], "broken": self.errors.count},
        )


@dataclass(frozen=True, slots=True)
class Leak:
    """A row for validation that says what one for training says, or asks what it asks when it is not `exact`."""

    training: int
    validation: int
    exact: bool


def read(path: Path, wanted: Format | None = None) -> Report:
    """Read a file to its end; OSError when it cannot be read."""
    found = wanted or detect(path)
    reading = _Reading(found)
    for row in rows(path, found):
        reading.take(row)
    return reading.report()


def leaks(training: Report, validation: Report) -> list[Leak]:
    """What validation would measure though it was learned by heart, in the order of validation's lines."""
    found = []
    for digest, line in validation.rows_by_digest.items():
        if (same := training.rows_by_digest.get(digest)) is not None:
            found.append(Leak(same, line, exact=True))
    exact = {leak.validation for leak in found}
    for prompt, line in validation.rows_by_prompt.items():
        if line not in exact and (same := training.rows_by_prompt.get(prompt)) is not None:
            found.append(Leak(same, line, exact=False))
    return sorted(found, key=lambda leak: leak.validation)


def split(given: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows for training and up to a `share` (0 to 1) of them for validation, both in their order.

    The same rows, share and seed give the same, wherever. Rows of one prompt stay together, so nothing leaks; those
    of a prompt that has too many are for training. Neither side is empty unless there is only one prompt, which is for
    training, or the share is 0: where every prompt has too many rows, the one with the fewest is for validation.
    """
    prompts = Counter(row.prompt for row in given)
    shuffled = sorted(prompts, key=lambda prompt: hashlib.sha256(b"%d " % seed + prompt).digest())
    wanted, taken, chosen = min(round(len(given) * share), len(given) - 1), 0, set()
    for prompt in shuffled:
        if taken + prompts[prompt] <= wanted:
            chosen.add(prompt)
            taken += prompts[prompt]
    if share > 0 and len(prompts) > 1 and not chosen:
        chosen = {min(shuffled, key=lambda prompt: prompts[prompt])}
    return [row for row in given if row.prompt not in chosen], [row for row in given if row.prompt in chosen]


class _Reading:
    """A report in the making."""

    def __init__(self, wanted: Format) -> None:
        self._format = wanted
        self._flaws: dict[bool, list[Flaw]] = {False: [], True: []}
        self._counts = {False: 0, True: 0}
        self._rows = 0
        self._repeats: list[Repeat] = []
        self._repeat_count = 0
        self._characters = array("Q")
        self._longest = 0
        self._roles: Counter[str] = Counter()
        self._answers: Counter[int] = Counter()
        self._longer = 0
        self._by_digest: dict[bytes, int] = {}
        self._by_content: dict[bytes, int] = {}
        self._by_prompt: dict[bytes, int] = {}

    def take(self, row: Row | Flaw) -> None:
        """The next one."""
        if isinstance(row, Flaw):
            self._note(row)
            return
        self._rows += 1
        self._characters.append(row.characters)
        self._longest = max(self._longest, row.tokens_max)
        self._answers[hash(row.answer)] += 1
        self._repeated(row)
        if "chosen" in row.value:
            self._longer += len(str(row.value["chosen"])) > len(str(row.value["rejected"]))
        messages = row.value.get("messages", ())
        self._roles.update(message["role"] for message in messages)
        if messages and messages[-1]["role"] != "assistant":
            self._note(Flaw(row.line, "ends with no answer: what is said last is not learned", warns=True))

    def report(self) -> Report:
        """All of it."""
        return Report(
            format=self._format,
            rows=self._rows,
            errors=Findings(tuple(self._flaws[False]), self._counts[False]),
            warnings=Findings(tuple(self._flaws[True]), self._counts[True]),
            repeats=tuple(self._repeats),
            repeat_count=self._repeat_count,
            characters=Lengths.of(self._characters),
            longest=self._longest,
            roles=dict(self._roles),
            hints=tuple(self._hints()),
            rows_by_digest=self._by_digest,
            rows_by_prompt=self._by_prompt,
        )

    def _note(self, flaw: Flaw) -> None:
        self._counts[flaw.warns] += 1
        if len(self._flaws[flaw.warns]) < TOLD_MAX:
            self._flaws[flaw.warns].append(flaw)

    def _repeated(self, row: Row) -> None:
        exact = row.digest in self._by_digest
        self._by_digest.setdefault(row.digest, row.line)
        self._by_prompt.setdefault(row.prompt, row.line)
        first = self._by_content.setdefault(row.content, row.line)
        if first == row.line:
            return
        self._repeat_count += 1
        if len(self._repeats) < TOLD_MAX:
            self._repeats.append(Repeat(row.line, self._by_digest[row.digest] if exact else first, exact))

    def _hints(self) -> Iterable[str]:
        if not self._rows and not self._counts[False]:
            yield "there are no rows; write one JSON object on each line"
        if 0 < self._rows < _FEW_ROWS:
            yield f"there are only {self._rows} rows; a model learns little from fewer than some fifty"
        if self._rows >= _FEW_ROWS:
            most = self._answers.most_common(1)[0][1]
            if self._format is not Format.TEXT and most > self._rows * _MUCH:
                yield f"{most} of {self._rows} rows have the same answer; the model may come to give it to everything"
            if self._format is Format.PREFERENCE and self._longer > self._rows * _NEARLY_ALL:
                yield (
                    f"the better answer is the longer one in {self._longer} of {self._rows} rows; "
                    "the model may learn to be long"
                )
