"""Jobs of the type `script`: any program that keeps to docs/reference/job-programs.md, or to none of it."""

import asyncio
import difflib
import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moc.kernel.errors import InvalidRequest
from moc.learning.files import Files
from moc.learning.job import Job, JobSpec, Outcome
from moc.learning.ports import Prepared

OPTIONS = ("command", "workdir")
TEXT_BYTES_MAX = 64 * 1024
"""How long a command, and its hyperparameters as JSON, may be: systems bound what a program is started with."""


class Script:
    """Implements `Kind`. Its options are `command`, a list or a line as for a shell, and `workdir`.

    Only the programs `commands` may be run. They are given no environment by who submits a job, for that could make
    them run anything; what is to differ from job to job is in the arguments or in the hyperparameters.
    """

    def __init__(self, *, files: Files, commands: frozenset[str]) -> None:
        self._files = files
        self._commands = commands

    def adjust(self, *, commands: frozenset[str]) -> None:
        """Run these programs from now on."""
        self._commands = commands

    async def check(self, spec: JobSpec) -> JobSpec:
        """The spec with its command as a list; see `Kind.check`."""
        for name in spec.options:
            if name not in OPTIONS:
                near = difflib.get_close_matches(name, OPTIONS, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(OPTIONS)}"
                raise InvalidRequest(f"a script has no option {name[:100]!r}; {hint}")
        command = _command(spec.options.get("command"))
        if command[0] not in self._commands:
            known = ", ".join(sorted(self._commands)) or "none"
            raise InvalidRequest(
                f"a script is a program: it must be one of security.trusted_commands ({known}), "
                f"not {command[0][:200]!r}; name it there in moc.yaml"
            )
        if os.path.dirname(command[0]) and not os.path.isabs(command[0]):
            raise InvalidRequest(f"{command[0]!r} lies in a folder that is not told; give its whole path, or its name")
        if len(_told(spec)) > TEXT_BYTES_MAX:
            raise InvalidRequest(
                f"the hyperparameters of a script are at most {TEXT_BYTES_MAX} bytes; put them in a file"
            )
        for file_id in _files(spec).values():
            self._files.show(file_id)
        return replace(spec, options={"command": command, **_workdir(spec.options.get("workdir"))})

    async def prepare(self, job: Job, folder: Path) -> Prepared:
        """See `Kind.prepare`."""
        spec = job.spec
        workdir = spec.options.get("workdir", "")
        if workdir and not await asyncio.to_thread(os.path.isdir, workdir):
            raise InvalidRequest(f"`workdir` {workdir} is no folder of the coordinator's machine")
        given = _files(spec)
        digest = hashlib.sha256("".join(self._files.show(file_id).sha256 for file_id in given.values()).encode())
        return Prepared(
            task={
                "hyperparameters": spec.hyperparameters,
                **{name: str(self._files.path(file_id)) for name, file_id in given.items()},
            },
            data_digest=f"sha256:{digest.hexdigest()}" if given else "",
            command=tuple(spec.options["command"]),
            workdir=workdir,
            environment={"MOC_HYPERPARAMETERS": _told(spec)},
        )

    async def finish(self, job: Job, prepared: Prepared, told: Mapping[str, Any], folder: Path) -> Outcome:
        """What it told as its result, or else the last of its metrics."""
        return Outcome(
            metrics=told.get("metrics") or job.progress.metrics,
            trained_tokens=told.get("trained_tokens", 0),
            data=told.get("data", {}),
        )


def _command(given: Any) -> list[str]:
    try:
        command = shlex.split(given) if isinstance(given, str) else given
    except ValueError as error:
        raise InvalidRequest(f"`command` cannot be read as a line of a shell: {error}") from None
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise InvalidRequest(
            "a script needs the option `command`: a program with its arguments, as a list or as one line"
        )
    if not command[0] or any("\0" in word for word in command) or sum(map(len, command)) > TEXT_BYTES_MAX:
        raise InvalidRequest(f"`command` is a program and its arguments, {TEXT_BYTES_MAX} characters at most")
    return command


def _workdir(given: Any) -> dict[str, str]:
    if not given:
        return {}
    if not isinstance(given, str) or not os.path.isabs(given) or "\0" in given:
        raise InvalidRequest(f"`workdir` is the whole path of a folder, not {str(given)[:200]!r}")
    return {"workdir": given}


def _told(spec: JobSpec) -> str:
    return json.dumps(spec.hyperparameters)


def _files(spec: JobSpec) -> dict[str, str]:
    """The files a script is given, by what they are for."""
    given = {"training_file": spec.training_file, "validation_file": spec.validation_file}
    return {name: file_id for name, file_id in given.items() if file_id}
