"""How fleets, tasks, devices, updates and files are named, in topics and in messages. Pure.

Patterns are for `re.Pattern.fullmatch`; the types are for structs that msgspec reads.
"""

import re
from typing import Annotated

import msgspec

from models.errors import UsageError

__all__ = ["NAME", "SHA256", "UPDATE_ID", "Digest", "Digits", "Name", "UpdateId", "checked_name"]

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")  # fleets, tasks and devices
DIGITS = re.compile(r"[0-9a-f]{8}")  # one installation of a device
UPDATE_ID = re.compile(rf"{DIGITS.pattern}-[0-9]{{1,18}}")  # installation and sequence number
SHA256 = re.compile(r"[0-9a-f]{64}")


def _all(pattern: re.Pattern[str]) -> msgspec.Meta:
    return msgspec.Meta(pattern=rf"^{pattern.pattern}\Z")  # before $ may stand a line's end


Name = Annotated[str, _all(NAME)]
Digits = Annotated[str, _all(DIGITS)]
UpdateId = Annotated[str, _all(UPDATE_ID)]
Digest = Annotated[str, _all(SHA256)]


def checked_name(kind: str, name: str) -> str:
    """Return ``name`` if it can stand in a topic; ``kind`` says what it names.

    Raises:
        UsageError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{kind} {name[:80]!r} is not usable: take 1 to 64 of a-z, 0-9 and '-', not '-' first"
        )
    return name
