"""The requests that are about jobs, as `moc.client.calls` has all others."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moc.client.calls import DONE, Asked, Call, StreamCall, get, item, member, nothing, page, part, post, view
from moc.client.job_views import CheckpointView, JobEventPage, JobEventView, JobView
from moc.client.views import Page


def submit(wish: Mapping[str, Any], idempotency_key: str | None) -> Call[JobView]:
    asked = post("/api/v1/jobs", {name: value for name, value in wish.items() if value is not None})
    if idempotency_key is not None:
        asked = replace(asked, headers={**asked.headers, "idempotency-key": idempotency_key})
    return Call(asked, view)


def list_jobs(after: str | None, limit: int, **only: str | None) -> Call[Page[JobView]]:
    return Call(get("/api/v1/jobs", after=after, limit=limit, **only), page("jobs"))


def show(job_id: str) -> Call[JobView]:
    return Call(get(_path(job_id)), view)


def change(job_id: str, verb: str) -> Call[JobView]:
    """`verb` is `pause` or `resume`."""
    return Call(Asked(method="POST", path=f"{_path(job_id)}/{verb}"), view)


def cancel(job_id: str, *, pruned: bool) -> Call[JobView]:
    query: dict[str, str | int] = {"pruned": "true"} if pruned else {}
    return Call(Asked(method="POST", path=f"{_path(job_id)}/cancel", query=query), view)


def remove(job_id: str) -> Call[None]:
    return Call(Asked(method="DELETE", path=_path(job_id)), nothing)


def list_events(job_id: str, after: int, limit: int) -> Call[JobEventPage]:
    return Call(get(f"{_path(job_id)}/events", after=after, limit=limit), page("events"))


def follow(job_id: str, after: int | None) -> StreamCall[JobEventView]:
    return StreamCall(get(f"{_path(job_id)}/events", follow="true", after=after), item, DONE)


def logs(job_id: str, attempt: int | None, tail_bytes: int) -> Call[str]:
    return Call(get(f"{_path(job_id)}/logs", attempt=attempt, tail_bytes=tail_bytes), member("log"))


def list_checkpoints(job_id: str) -> Call[list[CheckpointView]]:
    return Call(get(f"{_path(job_id)}/checkpoints"), member("checkpoints"))


def _path(job_id: str) -> str:
    return f"/api/v1/jobs/{part(job_id)}"
