"""The errors of edgefold, one per thing the caller does next."""

__all__ = [
    "CommandLineError",
    "DigestMismatchError",
    "EdgefoldError",
    "ForeignError",
    "NoPermissionError",
    "PayloadError",
    "TooLargeError",
    "TransientError",
    "TrustError",
    "UsageError",
]


class EdgefoldError(Exception):
    """Anything edgefold reports in one sentence, without a traceback."""


class PayloadError(EdgefoldError):
    """These bytes are not a valid value: drop them, count them, keep the session."""


class ForeignError(PayloadError):
    """Something else by how it begins: no bytes that may still come would make it valid."""


class TooLargeError(PayloadError):
    """A valid value, for all we know, but beyond the limit that holds here."""


class TrustError(EdgefoldError):
    """Valid, but not for us to use: refuse it and tell the operator."""


class TransientError(EdgefoldError):
    """The world was not ready: try again later, nothing was changed."""


class UsageError(EdgefoldError):
    """What a person asked for cannot be done; the message says what to do instead."""


class CommandLineError(UsageError):
    """What stands on the command line is wrong, whatever the state of things: exit code 2."""


class NoPermissionError(UsageError):
    """It may well be there, but whoever asks may not look; the message says as whom to ask."""


class DigestMismatchError(TrustError):
    """Bytes that do not have the promised sha256. Nothing was changed."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(f"sha256 is {found[:12]}…, promised was {expected[:12]}…")
        self.expected = expected
        self.found = found
