"""What a device is doing, in one word: the texts of `Status.state` that programs look for. Pure."""

from enum import StrEnum

__all__ = ["Doing"]


class Doing(StrEnum):
    """The most telling of what it does at once; a device that rests may say why instead."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SENDING = "sending"
