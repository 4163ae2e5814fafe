"""What an operator may set for a fleet, as ``key=value``: the sections of ``[[task]]``. Pure."""

import tomllib
from collections.abc import Iterable
from typing import Any

import msgspec

from broker.config import TaskConfig
from models.errors import UsageError
from models.host.settings_mistakes import mistake

__all__ = ["SHORT", "parse_setting", "with_policy"]

SHORT = {
    "updates": "aggregation.updates",
    "seconds": "aggregation.seconds",
    "min_seconds": "aggregation.min_seconds",
    "patience": "aggregation.patience",
    "min_gain": "aggregation.min_gain",
    "payload_bytes": "codec.bytes",
    "payload_nmse": "codec.nmse",
    "local_steps": "training.max_steps",
    "epochs": "training.epochs",
    "batch": "training.batch",
    "learning_rate": "training.learning_rate",
    "downlink": "downlink.method",
    "downlink_nmse": "downlink.nmse",
}


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the key and value of ``key=value``; a short key becomes the whole one.

    Raises:
        UsageError: no such key, or a value that it cannot have.
    """
    short, equals, value = text.partition("=")
    key = SHORT.get(short.strip(), short.strip())
    section, _, name = key.partition(".")
    if not equals or not section or not name or "." in name:
        raise UsageError(
            f"policy {text!r}: write it as key=value, with a key of docs/server.md's [[task]] "
            f"(aggregation.updates=50) or one of {', '.join(SHORT)}"
        )
    try:
        parsed: Any = tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # so that a shell needs no second pair of quotes
    with_policy(TaskConfig(bundle=""), [(key, parsed)])
    return key, parsed


def with_policy(task: TaskConfig, policy: Iterable[tuple[str, Any]]) -> TaskConfig:
    """Return ``task`` with these settings, each named ``section.key``.

    Raises:
        UsageError: no such setting, or out of range.
    """
    values = msgspec.to_builtins(task)
    for key, value in policy:
        section, _, name = key.partition(".")
        if not isinstance(values.get(section), dict):
            raise UsageError(f"policy {key}: [[task]] has no section {section!r} (docs/server.md)")
        values[section][name] = value
    try:
        return msgspec.convert(values, TaskConfig)
    except msgspec.ValidationError as error:
        names = ", ".join(key for key, _ in policy)
        found = mistake(error, values, TaskConfig, elsewhere={})
        raise UsageError(f"policy {names}: {found.reason} (docs/server.md)") from None
