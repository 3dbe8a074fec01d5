"""The tokens of a llama.cpp engine in this process, which tells of them on its own private socket only."""

import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from moc.kernel.errors import Internal, InvalidRequest, MocError

TIMEOUT_S = 30.0


class Token(msgspec.Struct, frozen=True):
    """A token of a text; `piece` is its bytes, as text where they are one."""

    id: int
    piece: str | list[Annotated[int, msgspec.Meta(ge=0, le=255)]]

    @property
    def bytes(self) -> bytes:
        """What it stands for."""
        return self.piece.encode() if isinstance(self.piece, str) else bytes(self.piece)


class _Tokens(msgspec.Struct):
    tokens: list[Token]


class LlamaTokens:
    """What the engine's tokenizer says. It blocks: ask it in a thread."""

    def __init__(self, path: str, key: str) -> None:
        self._path = path
        self._key = key

    def encode(self, text: str, *, special: bool = True) -> list[Token]:
        """The tokens of a text, with those the model wants around it if `special`."""
        asked = {"content": text, "add_special": special, "parse_special": True, "with_pieces": True}
        return msgspec.json.decode(self._ask("/tokenize", msgspec.json.encode(asked)), type=_Tokens).tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text."""
        answer = self._ask("/detokenize", msgspec.json.encode({"tokens": tokens}))
        return msgspec.json.decode(answer, type=dict[str, str])["content"]

    def prompt_of(self, messages: Sequence[Mapping[str, Any]], *, generate: bool) -> str:
        """A conversation in the model's own form, up to where the answer would begin if `generate`.

        It lacks the mark that the model puts in front of every text. InvalidRequest when the template objects.
        """
        asked = {"messages": messages, "add_generation_prompt": generate}
        answer = self._ask("/apply-template", msgspec.json.encode(asked), refusal=InvalidRequest)
        return msgspec.json.decode(answer, type=dict[str, str])["prompt"]

    def _ask(self, path: str, body: bytes, *, refusal: type[MocError] = Internal) -> bytes:
        from http.client import HTTPConnection  # most models are never asked for their tokens

        connection = HTTPConnection("engine", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(TIMEOUT_S)
            connection.sock.connect(self._path)
            connection.request("POST", path, body, {"authorization": f"Bearer {self._key}"})
            answer = connection.getresponse()
            said = answer.read()
        except OSError as error:
            raise Internal(f"llama.cpp does not tell of tokens: {error}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise refusal(f"llama.cpp does not tell of tokens: {said[:300].decode('utf-8', 'replace')}")
        return said
