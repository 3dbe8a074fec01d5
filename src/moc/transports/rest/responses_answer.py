"""A chat answer as OpenAI's responses API has it, whole or in events. Pure: nothing here is asked or answered."""

import time
from typing import Any, Final

import msgspec

from moc.kernel.errors import Internal, MocError
from moc.kernel.ids import new_id
from moc.transports.rest.chat import ChatAnswer, ToolCall, Usage, answer_in
from moc.transports.rest.responses_request import ResponsesRequest
from moc.transports.rest.streaming import typed_event
from moc.transports.status import status_of

Fields = dict[str, Any]

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseTeller:
    """Tells an answer item by item: messages, and calls of functions.

    It is also how a whole answer is made: told in one piece, with nobody listening.
    """

    def __init__(self, request: ResponsesRequest) -> None:
        self.response: Fields = _response(request)
        self._number = 0
        self._open: str | None = None
        self._call: int | None = None
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def begin(self, reference: str) -> bytes:
        """The response without its output."""
        self.response["model"] = reference
        return self._state("response.created") + self._state("response.in_progress")

    def piece(self, data: bytes) -> bytes:
        """What a chunk adds."""
        return self.add(answer_in(data))

    def add(self, chunk: ChatAnswer) -> bytes:
        """The same, of a chunk that is read."""
        self._usage = chunk.usage or self._usage
        parts: list[bytes] = []
        for choice in chunk.choices:
            self._finish_reason = choice.finish_reason or self._finish_reason
            if choice.said.content:
                parts.append(self._add_text(choice.said.content))
            for place, call in enumerate(choice.said.tool_calls or ()):
                parts.append(self._add_call(call, place if call.index is None else call.index))
        return b"".join(parts)

    def end(self) -> bytes:
        """The last item's end, then the whole response."""
        reason = _INCOMPLETE.get(self._finish_reason or "")
        closed = self._close("incomplete" if reason else "completed")
        self.response["status"] = "incomplete" if reason else "completed"
        self.response["incomplete_details"] = {"reason": reason} if reason else None
        self.response["usage"] = _usage(self._usage)
        return closed + self._state(f"response.{self.response['status']}")

    def fail(self, error: MocError, body: bytes) -> bytes:
        """The response as far as it came, with the reason."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": status_of(error).openai, "message": error.message}
        return self._state("response.failed")

    def _add_text(self, text: str) -> bytes:
        head = b"" if self._open == "message" else self._begin_message()
        self._item["content"][0]["text"] += text
        return head + self._tell("response.output_text.delta", content_index=0, delta=text, logprobs=[])

    def _add_call(self, call: ToolCall, index: int) -> bytes:
        goes_on = self._open == "function_call" and self._call == index
        head = b"" if goes_on else self._begin_call(call, index)
        arguments = call.function.arguments
        if not arguments:
            return head
        self._item["arguments"] += arguments
        return head + self._tell("response.function_call_arguments.delta", delta=arguments)

    def _begin_message(self) -> bytes:
        head = self._begin({"id": new_id("msg"), "type": "message", "role": "assistant", "content": []})
        part: Fields = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._item["content"].append(part)
        return head + self._tell("response.content_part.added", content_index=0, part=part)

    def _begin_call(self, call: ToolCall, index: int) -> bytes:
        self._call = index
        named = {"call_id": call.id or new_id("call"), "name": call.function.name or "", "arguments": ""}
        return self._begin({"id": new_id("fc"), "type": "function_call", **named})

    def _begin(self, item: Fields) -> bytes:
        closed = self._close("completed")
        self._open = item["type"]
        self.response["output"].append({**item, "status": "in_progress"})
        return closed + self._tell_item("response.output_item.added")

    def _close(self, status: str) -> bytes:
        if self._open is None:
            return b""
        told = self._end_message() if self._open == "message" else self._end_call()
        self._open = None
        self._item["status"] = status
        return told + self._tell_item("response.output_item.done")

    def _end_message(self) -> bytes:
        part = self._item["content"][0]
        text = self._tell("response.output_text.done", content_index=0, text=part["text"], logprobs=[])
        return text + self._tell("response.content_part.done", content_index=0, part=part)

    def _end_call(self) -> bytes:
        item = self._item
        return self._tell("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])

    @property
    def _item(self) -> Fields:
        """The newest item; no other is ever added to."""
        item: Fields = self.response["output"][-1]
        return item

    def _state(self, kind: str) -> bytes:
        return self._event(kind, {"response": self.response})

    def _tell_item(self, kind: str) -> bytes:
        return self._event(kind, {**self._place(), "item": self._item})

    def _tell(self, kind: str, **more: Any) -> bytes:
        return self._event(kind, {"item_id": self._item["id"], **self._place(), **more})

    def _place(self) -> Fields:
        return {"output_index": len(self.response["output"]) - 1}

    def _event(self, kind: str, fields: Fields) -> bytes:
        told = typed_event({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return told


def response_of(request: ResponsesRequest, answer: ChatAnswer, reference: str) -> Fields:
    """The whole response."""
    if not answer.choices:
        raise Internal("the model answered without a message")
    teller = ResponseTeller(request)
    teller.begin(reference)
    teller.add(answer)
    teller.end()
    return teller.response


def _response(request: ResponsesRequest) -> Fields:
    """What the request says, and nothing that came of it yet."""
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "model": request.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": request.temperature,
        "text": {"format": _format(request)},
        "tool_choice": msgspec.to_builtins(request.tool_choice or "auto"),
        "tools": msgspec.to_builtins(request.tools or []),
        "top_p": request.top_p,
        "usage": None,
    }


def _format(request: ResponsesRequest) -> Fields:
    given = None if request.text is None else request.text.format
    if given is None or given.type != "json_schema":
        return {"type": "text" if given is None else given.type}
    described: Fields = msgspec.to_builtins(given)
    return described


def _usage(usage: Usage | None) -> Fields | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
