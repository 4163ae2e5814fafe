"""Numbers on a command line, for argparse: each refuses what it is not in a sentence."""

import argparse
import re

__all__ = ["batch_size", "finite", "image_size", "not_negative", "not_zero", "positive"]


def image_size(text: str) -> tuple[int, int]:
    """Return ``text`` as height and width, for argparse."""
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    if not match or not (int(match[1]) and int(match[2])):
        raise argparse.ArgumentTypeError(f"{text} is no HEIGHTxWIDTH, such as 64x64")
    return int(match[1]), int(match[2])


def positive(text: str) -> float:
    """Return ``text`` as a number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number > 0")
    return value


def finite(text: str) -> float:
    """Return ``text`` as a number, for argparse; infinity and nan are none."""
    value = float(text)
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def not_zero(text: str) -> float:
    """Return ``text`` as a number other than 0, for argparse."""
    value = finite(text)
    if not value:
        raise argparse.ArgumentTypeError("0 would leave nothing of x")
    return value


def not_negative(text: str) -> float:
    """Return ``text`` as a number of 0 or more, for argparse."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number >= 0")
    return value


def batch_size(text: str) -> int:
    """Return ``text`` as samples per step, for argparse."""
    value = int(text)
    if not 1 <= value <= 4096:
        raise argparse.ArgumentTypeError(f"{text} is not in 1..4096")
    return value
