"""JSON bodies read strictly."""

import re
from typing import Final, TypeVar

import msgspec

from moc.kernel.choices import told
from moc.kernel.errors import InvalidRequest

T = TypeVar("T")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")


def decoded(decoder: msgspec.json.Decoder[T], text: bytes | memoryview) -> T:
    """What `text` says, as the decoder's type; InvalidRequest with the place of whatever is wrong with it."""
    try:
        return decoder.decode(text)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8 text") from None
    except msgspec.ValidationError as error:
        unknown = _UNKNOWN.search(str(error))
        details = {"param": unknown[1]} if unknown else {}
        raise InvalidRequest(f"the body is not what this takes: {told(error, decoder.type)}", details=details) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
