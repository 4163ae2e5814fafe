"""What may be asked of the inference process: the heads of its frames."""

from typing import Final, Literal

import msgspec

__all__ = ["AnyRequest", "Describe", "Infer", "Load", "Ping", "Request", "decode_request"]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    """What a client may want."""


class Load(Request, frozen=True, forbid_unknown_fields=True, tag="load"):
    """Take these files as the model, if they pass the self-test."""

    infer: str
    spec: str
    parameters: str
    release: int
    personal: str | None = None
    serves: Literal["released", "tuned"] = "released"  # what the parameters are
    is_trial: bool = False  # try it, and go on answering with what there is


class Infer(Request, frozen=True, forbid_unknown_fields=True, tag="infer"):
    """Answer for the samples in the body."""


class Describe(Request, frozen=True, forbid_unknown_fields=True, tag="describe"):
    """Say what the model takes and gives."""


class Ping(Request, frozen=True, forbid_unknown_fields=True, tag="ping"):
    """Say which release answers, how often it did, and in how much memory."""


AnyRequest = Load | Infer | Describe | Ping
_REQUEST: Final[msgspec.json.Decoder[AnyRequest]] = msgspec.json.Decoder(AnyRequest)


def decode_request(head: bytes) -> AnyRequest:
    """Read a request.

    Raises:
        msgspec.MsgspecError, RecursionError: it is none.
    """
    return _REQUEST.decode(head)
