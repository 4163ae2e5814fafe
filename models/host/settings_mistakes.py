"""What is wrong with settings that do not fit their structs: in the words of the file. Pure.

msgspec says where and what type; people want to know what to write there.
"""

import enum
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, get_args

import msgspec

__all__ = ["Mistake", "mistake"]

LONGEST_REASON = 300  # msgspec repeats a value
_NUMBERS = ("`int`", "`float`", "`int | float`")


class Mistake(NamedTuple):
    """One mistake: ``place`` are the keys that lead to it, ``number`` which of equal sections."""

    place: tuple[str, ...]
    number: int | None  # 1: the first one
    reason: str
    key: str = ""  # the setting of ``place`` that nobody knows, or that is missing

    def is_of(self, setting: tuple[str, ...]) -> bool:
        """Whether it is ``setting`` that is wrong, or what it is part of, or a part of it."""
        return all(mine == its for mine, its in zip(self.keys, setting, strict=False))

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.place, self.key) if self.key else self.place


def mistake(
    error: msgspec.ValidationError,
    values: Mapping[str, Any],
    kind: type[msgspec.Struct],
    *,
    elsewhere: Mapping[str, str],
    hidden: Collection[str] = (),
) -> Mistake:
    """Return what ``error`` says of ``values``, which were to become a ``kind``.

    ``elsewhere``: keys of the uppermost level that another file has -> that file. ``hidden`` are
    fields that no file may set.
    """
    reason, _, path = str(error).partition(" - at `$")
    steps = re.findall(r"\[(\d+)\]|\.([^.\[\]`]+)", path)
    place = tuple(name for _, name in steps if name)
    number = next((int(index) + 1 for index, _ in steps if index), None)
    value: Any = values
    for index, name in steps:
        value = value[int(index)] if index else value.get(name)
    struct = _struct_at(kind, place)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", reason):
        said = _unknown(unknown[1], place, struct, kind, elsewhere, hidden)
        return Mistake(place, number, said, unknown[1])
    if missing := re.fullmatch(r"Object missing required field `(.*)`", reason):
        return Mistake(place, number, _missing(missing[1], place, struct), missing[1])
    reason = reason[:1].lower() + reason[1:LONGEST_REASON]
    is_of_few = "enum value" in reason or re.match(r"expected `[^`]*str`", reason)
    remedy = _choices(struct, place, value) if is_of_few else ""
    remedy = remedy or _remedy(reason, value, place[-1] if place else "")
    return Mistake(place, number, f"{reason}; {remedy}" if remedy else reason)


def _unknown(
    name: str,
    place: tuple[str, ...],
    struct: type[msgspec.Struct],
    kind: type[msgspec.Struct],
    elsewhere: Mapping[str, str],
    hidden: Collection[str],
) -> str:
    known = [f.encode_name for f in msgspec.structs.fields(struct) if f.encode_name not in hidden]
    said = f"there is no setting {name!r}"
    if not place and name in elsewhere:
        return f"{said}; {elsewhere[name]} has it: is this that file?"
    if others := [section for section, names in _sections(kind, "") if name in names]:
        return f"{said} here; it belongs into {' or '.join(f'[{other}]' for other in others)}"
    import difflib  # a fifth of a megabyte, for a mistake

    if near := difflib.get_close_matches(name.lower().replace("-", "_"), known, 1):
        return f"{said}; did you mean {near[0]!r}?"
    return f"{said}; known are {', '.join(known)}"


def _missing(name: str, place: tuple[str, ...], struct: type[msgspec.Struct]) -> str:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    inner = _structs(fields[name].type) if name in fields else []
    if not place and inner:
        required = [f.encode_name for f in msgspec.structs.fields(inner[0]) if f.required]
        brackets = f"[[{name}]]" if "tuple" in repr(fields[name].type) else f"[{name}]"
        needs = " and ".join(map(repr, required)) or "its settings"
        return f"section {brackets} is missing; add it with {needs}"
    return f"lacks {name!r}; add a line: {name} = ..."


def _remedy(reason: str, value: object, key: str) -> str:
    expected, _, got = reason.removeprefix("expected ").partition(", got ")
    if expected.startswith(_NUMBERS):
        if isinstance(value, str):
            if _is_number(value):
                return "write the number without quotes"
            if re.match(r"\s*[-+]?\d", value):
                return "write the number alone, without quotes and without its unit"
            return "write a number"
        if isinstance(value, float) and expected.startswith("`int`"):
            return "write a whole number, its digits only"
    elif expected.startswith("`bool`"):
        return "write true or false, without quotes"
    elif expected.startswith("`str") and got and not isinstance(value, dict | list):
        return "write it in quotes"
    elif expected.startswith("`array`") and isinstance(value, dict):
        return f"write [[{key}]] for each of them"
    elif expected.startswith("`object"):
        return f"write it as a section [{key}]"
    return ""


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?\d+([.,]\d*)?\s*", text))


def _choices(struct: type[msgspec.Struct], place: tuple[str, ...], value: object) -> str:
    """Return what may stand at ``place``, a field of ``struct`` that has a few values."""
    kinds = [f.type for f in msgspec.structs.fields(struct) if f.encode_name == place[-1]]
    if not kinds:
        return ""
    texts, has_numbers = _texts(kinds[0]), _has_numbers(kinds[0])
    if not texts or f'"{value}"' in texts:
        return ""
    if has_numbers and isinstance(value, str) and _is_number(value):
        return "write the number without quotes"
    words = ", ".join(texts)
    return f"take {words} or a number" if has_numbers else f"known are {words}"


def _has_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(map(_has_numbers, get_args(kind)))


def _texts(kind: Any) -> list[str]:
    if isinstance(kind, str):
        return [f'"{kind}"']
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [f'"{member.value}"' for member in kind]
    return [text for part in get_args(kind) for text in _texts(part)]


def _struct_at(kind: type[msgspec.Struct], place: tuple[str, ...]) -> type[msgspec.Struct]:
    """Return the struct that ``place`` lies in, as far as there are structs on the way."""
    for name in place:
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        inner = _structs(fields.get(name))
        if not inner:
            return kind
        kind = inner[0]
    return kind


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    """Return the structs that an annotation names."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for part in get_args(kind) for struct in _structs(part)]


def _sections(kind: type[msgspec.Struct], name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each section below ``kind`` with its settings."""
    fields = msgspec.structs.fields(kind)
    if name:
        yield name, [field.encode_name for field in fields]
    for field in fields:
        for struct in _structs(field.type):
            yield from _sections(
                struct, f"{name}.{field.encode_name}" if name else field.encode_name
            )
