"""The program of searches: `python -m moc.workers.trainers.tune`."""

import asyncio
import os
from pathlib import Path

from moc.client.async_client import AsyncClient
from moc.workers.trainers.assignment import Assignment, carry_out
from moc.workers.trainers.trials import Trials

STUDY_FILE = "study.db"


def tune(assignment: Assignment) -> bool:
    """Search until all trials have ended; see `assignment.Work`."""
    key = Path(os.environ["MOC_API_KEY_FILE"]).read_text(encoding="ascii").strip()
    return asyncio.run(_tune(assignment, AsyncClient(url=os.environ["MOC_URL"], key=key)))


async def _tune(assignment: Assignment, client: AsyncClient) -> bool:
    from moc.workers.trainers.search import Search  # brings Optuna; SIGTERM is heard by now

    async with client:
        trials = Trials(client, search=assignment.job, base=assignment.task["base"])
        study = assignment.folder / STUDY_FILE
        search = Search(study, assignment.task, jobs=trials, report=assignment.report)
        work = asyncio.create_task(search.run())
        stop = asyncio.create_task(assignment.stop.wait())
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))
            return False
        stop.cancel()
        work.result()
        search.tell_result()
        return True


if __name__ == "__main__":
    carry_out(tune)
