"""Work that goes on from start to stop."""

import asyncio

from structlog.testing import capture_logs

from moc.kernel.routine import Routine


async def test_it_goes_on_from_start_to_stop_once() -> None:
    began, ended = [], []

    async def work() -> None:
        began.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    routine = Routine("r", work)
    await routine.stop()
    for count in (1, 2):
        routine.start()
        routine.start()
        await asyncio.sleep(0)
        assert (routine.runs, len(began)) == (True, count)
        with capture_logs() as told:
            await routine.stop()
            await routine.stop()
        assert (routine.runs, len(ended), told) == (False, count, [])


async def test_one_that_ends_by_itself_is_told_of() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with capture_logs() as told:
        routine = Routine("r", work)
        routine.start()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await routine.stop()
    assert [(each["log_level"], each["routine"]) for each in told] == [("error", "r")]
