"""What a board spends: idle, training, on the air. Pure.

Every number can be replaced (``--energy FILE.toml``); measure your own board before you trust a
battery to them. Sources: the idle power of a Zero 2 W, 0.60 W with Raspberry Pi OS Lite and no
display, is measured in CNX Software, "A deep dive into Raspberry Pi Zero 2 W's power consumption"
(2021-12-09); of a Pi 4, 2.7 W idle and 6.4 W with all four cores busy, in J. Geerling, "Power
Consumption Benchmarks" (pidramble.com). The others are ASSUMPTIONS: one busy core takes 1.15 W
(Zero 2 W) and 4.0 W (Pi 4) in total; an associated Wi-Fi radio 0.1 W more than one that is off,
and a byte 5 uJ (1 W more on the air at 1.6 Mbit/s net); a step of training takes 30 and 8 ms, and
the start of a trainer 8 and 3 s.
"""

import tomllib
from typing import Annotated

import msgspec

from models.errors import UsageError

__all__ = ["BOARDS", "PI_4", "PI_ZERO_2", "Board", "joules", "parse_board"]

Amount = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The power of a board in its states. Defaults: a Raspberry Pi Zero 2 W."""

    name: str = "pi-zero-2"
    idle_w: Amount = 0.60  # all the time
    training_w: Amount = 1.15  # in total, while it trains on one core
    radio_w: Amount = 0.10  # on top, while it has a network
    joules_per_byte_up: Amount = 5e-6  # on top, for what it sends
    joules_per_byte_down: Amount = 5e-6
    step_ms: Amount = 30.0  # one step of training
    start_s: Amount = 8.0  # of a trainer, until its first step


PI_ZERO_2 = Board()
PI_4 = Board(name="pi-4", idle_w=2.7, training_w=4.0, step_ms=8.0, start_s=3.0)
BOARDS = {board.name: board for board in (PI_ZERO_2, PI_4)}


def parse_board(text: str, source: str) -> Board:
    """Read a board: keys of `Board`, and ``like = "pi-4"`` for what is not named.

    Raises:
        UsageError: not TOML, or a key is unknown or out of range.
    """
    try:
        values = tomllib.loads(text)
        like = values.pop("like", PI_ZERO_2.name)
        if like not in BOARDS:
            raise UsageError(f"{source}: like = {like!r}; known are {', '.join(BOARDS)}")
        return msgspec.convert(msgspec.to_builtins(BOARDS[like]) | values, Board)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{source}: {error}") from None


def joules(
    board: Board,
    *,
    seconds: float,
    training_s: float,
    online_s: float,
    bytes_up: float,
    bytes_down: float,
) -> dict[str, float]:
    """Return the energy of ``seconds`` by what it was spent on, in joules.

    ``idle`` is what the board takes in any case; the rest is what learning and talking add.
    """
    return {
        "idle": board.idle_w * seconds,
        "training": max(0.0, board.training_w - board.idle_w) * training_s,
        "radio": board.radio_w * online_s
        + board.joules_per_byte_up * bytes_up
        + board.joules_per_byte_down * bytes_down,
    }
