"""JSON bodies read strictly."""

from typing import TypeVar

import msgspec

from moc.kernel.errors import InvalidRequest

T = TypeVar("T")


def decoded(decoder: msgspec.json.Decoder[T], text: bytes | memoryview) -> T:
    """What `text` says, as the decoder's type; InvalidRequest with the place of whatever is wrong with it."""
    try:
        return decoder.decode(text)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8 text") from None
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body is not what this takes: {error}") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
