"""An upstream that answers every chat the same, as fast as it can: `python -m bench.canned PORT`."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

CHUNKS = 1_000
"""How many a stream has."""

_SAID = {"role": "assistant", "content": "It is the one that you would like best."}
_CHOICE = {"index": 0, "message": _SAID, "finish_reason": "stop"}
_USAGE = {"prompt_tokens": 12, "completion_tokens": 11, "total_tokens": 23}
_TOP = {"id": "chatcmpl-1", "created": 1_760_000_000, "model": "canned"}
ANSWER = json.dumps({**_TOP, "object": "chat.completion", "choices": [_CHOICE], "usage": _USAGE}).encode()
_DELTA = {"index": 0, "delta": {"content": " best"}, "finish_reason": None}
CHUNK = json.dumps({**_TOP, "object": "chat.completion.chunk", "choices": [_DELTA]}).encode()
EVENT = b"data: " + CHUNK + b"\n\n"
_WHOLE = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
_STREAMED = [(b"content-type", b"text/event-stream")]

Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    """Every path; a stream's chunks are written one by one, as an engine makes them."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if b'"stream":true' not in body:
        await send({"type": "http.response.start", "status": 200, "headers": _WHOLE})
        await send({"type": "http.response.body", "body": ANSWER})
        return
    await send({"type": "http.response.start", "status": 200, "headers": _STREAMED})
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), lifespan="off", log_level="error", access_log=False)
