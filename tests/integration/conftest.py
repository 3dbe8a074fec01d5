"""A REST server over real services and fake workers."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from moc.workers.local import LocalWorkers
from tests.grpc_stack import GrpcStack, serving
from tests.hosted import Host, host
from tests.rest_stack import RestStack, client, running


@pytest.fixture
async def rest_stack(tmp_path: Path) -> AsyncIterator[RestStack]:
    """Started and ready; no model is registered."""
    async with running(tmp_path) as stack:
        yield stack


@pytest.fixture
async def rest_client(rest_stack: RestStack) -> AsyncIterator[httpx.AsyncClient]:
    """Talks to `rest_stack` with the admin key."""
    async with client(rest_stack) as made:
        yield made


@pytest.fixture
async def grpc_stack(tmp_path: Path) -> AsyncIterator[GrpcStack]:
    """Started and ready, with a channel that has the admin key; no model is registered."""
    async with serving(tmp_path) as stack:
        yield stack


@pytest.fixture
async def here() -> AsyncIterator[Host]:
    with tempfile.TemporaryDirectory(prefix="moc-") as short:  # a socket's path must be
        async with host(Path(short)) as it:
            yield it


@pytest.fixture
async def workers(here: Host) -> LocalWorkers:
    return await here.coordinator()
