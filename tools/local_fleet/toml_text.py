"""Settings as TOML text, for programs that are started with a file of them."""

import json
from collections.abc import Mapping

__all__ = ["to_toml"]


def to_toml(values: Mapping[str, object]) -> str:
    """Return ``values`` (tables, arrays of tables and plain values) as TOML."""
    lines: list[str] = []
    _write(lines, values, "")
    return "\n".join(lines).strip() + "\n"


def _write(lines: list[str], table: Mapping[str, object], prefix: str) -> None:
    tables: list[tuple[str, Mapping[str, object]]] = []
    for key, value in table.items():
        match value:
            case Mapping():
                tables.append((f"[{prefix}{key}]", value))
            case [Mapping(), *_]:
                for entry in value:
                    assert isinstance(entry, Mapping)
                    tables.append((f"[[{prefix}{key}]]", entry))
            case _:
                lines.append(f"{key} = {json.dumps(value)}")
    for head, inner in tables:
        lines += ["", head]
        _write(lines, inner, head.strip("[]") + ".")
