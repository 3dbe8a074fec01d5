"""A model that calls every tool it is offered, in pieces, and then says what came of it."""

from collections.abc import Iterator
from typing import Any

from moc.kernel.errors import InvalidRequest

Fields = dict[str, Any]

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


class Model:
    def chat(self, request: Fields) -> Fields:
        try:
            last = request["messages"][-1]
            if last["role"] == "tool":
                return _answer({"content": f"It is {last['content']}."}, "stop")
        except (LookupError, TypeError):
            raise InvalidRequest("`messages` is no list of messages") from None
        return _answer({"content": "Let me see.", "tool_calls": _calls(request)}, "tool_calls")

    def stream(self, request: Fields) -> Iterator[Fields]:
        yield _chunk({"role": "assistant", "content": "Let me "})
        yield _chunk({"content": "see."})
        for index, call in enumerate(_calls(request)):
            arguments, call["function"]["arguments"] = call["function"]["arguments"], ""
            yield _chunk({"tool_calls": [{"index": index, **call}]})
            for part in (arguments[:4], arguments[4:]):
                yield _chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        yield _chunk({}, "tool_calls")
        yield {"choices": [], "usage": USAGE}


def _calls(request: Fields) -> list[Fields]:
    try:
        names = [tool["function"]["name"] for tool in request.get("tools") or ()]
    except (LookupError, TypeError):
        raise InvalidRequest("`tools` is no list of functions") from None
    return [
        {
            "id": f"call-{index}",
            "type": "function",
            "function": {"name": name, "arguments": '{"river": "Rhine"}'},
        }
        for index, name in enumerate(names)
    ]


def _answer(said: Fields, reason: str) -> Fields:
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": reason}
    return {"choices": [choice], "usage": USAGE}


def _chunk(delta: Fields, reason: str | None = None) -> Fields:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
