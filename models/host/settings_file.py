"""Reads a file of settings in TOML, as people's editors save it; says which line is wrong, and why.

A byte order mark in front and lines that end with CR LF, as editors on Windows write them, are
taken. Nothing else is guessed: whatever TOML reads otherwise than it looks is refused. No sentence
shows a value, which may be a password.
"""

import math
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.errors import NoPermissionError, UsageError
from models.host.credential_copies import readable

__all__ = ["expanded", "parsed_settings", "read_settings", "read_value", "refuse_odd_values"]

MAX_BYTES = 1 << 20  # ours have one or two thousand
_MARKS = {  # in front of text in other encodings; the longer ones first
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_BLANKS = {"\u00a0", "\u2007", "\u202f", "\u3000", "\u200b", "\u2060", "\ufeff"}
_BLANK_KINDS = ("Zs", "Zl", "Zp", "Cf")  # of Unicode
_SAVE = "save it as UTF-8"


def read_settings(path: Path, *, example: str) -> dict[str, Any]:
    """Return the values of the file ``path``, checked by nobody yet.

    ``example``: which file belongs there, and which page has one to copy.

    Raises:
        NoPermissionError: neither we nor systemd may read it for us.
        UsageError: it cannot be read, or not be understood: which line, and what to do.
    """
    try:
        with open(readable(path), "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except PermissionError:
        raise NoPermissionError(
            f"{path}: no permission to read it: run this with sudo; if the service says so, "
            "docs/mosquitto.md has how it may (secrets)"
        ) from None
    except FileNotFoundError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; write {example} or name it with --config"
        ) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory: name the file in it with --config") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or "no name of a file"
        raise UsageError(f"cannot read {path}: {reason}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES >> 20} MB: is it another file?")
    return parsed_settings(_text(path, data), source=path)


def _text(path: Path, data: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise UsageError(f"{path} is text in {encoding}: {_SAVE}")
    if data[:2] != data[:2].strip(b"\0") and len(data) > 1:
        raise UsageError(f"{path} is text in UTF-16, or none at all: {_SAVE}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}: line {line} has a byte that is no UTF-8 (0x{data[error.start]:02X}): {_SAVE}"
        ) from None


def parsed_settings(text: str, *, source: Path) -> dict[str, Any]:
    """Return the values in ``text``, which stands in ``source``.

    Raises:
        UsageError: see `read_settings`.
    """
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{source} is not TOML: brackets in brackets without end") from None
    except ValueError as error:  # most are a TOMLDecodeError, but not all
        raise UsageError(f"{source} is not TOML: {_explained(error, text)}") from None
    try:
        refuse_odd_values(values, source=str(source))
    except RecursionError:  # keys of a thousand parts, a.a.a...
        raise UsageError(f"{source} has sections in sections without end") from None
    return values


def read_value(text: str) -> Any:
    """Return the one value ``text``, as on a command line; what is no TOML is a string."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        return text.strip()  # so that a shell needs no second pair of quotes


def refuse_odd_values(values: Mapping[str, Any], *, source: str) -> None:
    """Require that nothing in ``values`` is what TOML takes and nobody means.

    Raises:
        UsageError: a text with a control character, a variable of the shell, a number that is none.
    """
    for key, value in _leaves(values, ""):
        mistake = _not_meant(value, key) if isinstance(value, str) else ""
        if isinstance(value, float) and not math.isfinite(value):
            mistake = "is no finite number"
        if mistake:
            raise UsageError(f"{source}: {key} {mistake}")


def expanded(text: str) -> Path:
    """Return the path ``text``, its ``~`` replaced.

    Raises:
        UsageError: that is the home of nobody whom this machine knows, or a path of Windows.
    """
    if "\\" in text:
        raise UsageError("a path is written with / here, not with backslashes")
    try:
        return Path(text).expanduser()
    except (RuntimeError, KeyError):
        raise UsageError(f"{text.split('/')[0]} is nobody's home here: write the path") from None


def _explained(error: ValueError, text: str) -> str:
    """Return tomllib's sentence with the line, the setting and the remedy, without the value."""
    lines = text.split("\n")
    said = re.sub(r" \(at [^)]*\)$", "", str(error).partition(":")[0])
    said = said[:1].lower() + said[1:]
    place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
    if place is None:
        number = _second_of_two(lines) if "overwrite" in said else _open_end(lines)
        column = len(lines[number - 1]) if number else 0
    else:
        number, column = int(place[1]), int(place[2])
    if not number:
        return said
    line = lines[number - 1]
    key = line.partition("=")[0].strip()
    named = f" ({key})" if re.fullmatch(r"[\w.\"'-]{1,40}", key, re.ASCII) else ""
    remedy = _remedy(line, column, said)
    return f"line {number}{named}: {remedy or said}"


def _remedy(line: str, column: int, said: str) -> str:
    if re.match(r"\s*(<<<<<<<|=======|>>>>>>>)", line):
        return "a merge left both versions in the file: decide for one, delete such lines"
    if line.strip().startswith("```"):
        return "this is a mark of a web page: delete the line"
    bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", line)  # in quotes everything may stand
    if odd := next((c for c in bare if _is_odd(c)), ""):
        if odd in _BLANKS or unicodedata.category(odd) in _BLANK_KINDS:
            return (
                f"{_named(odd)} is a blank that TOML does not know: write an ordinary one, or none"
            )
        return f'{_named(odd)} is no quotation mark of TOML: write the one of programs, "'
    if "\r" in line.rstrip("\r"):
        return "lines end with CR alone: save the file with LF, or with CR LF"
    if "overwrite" in said or "twice" in said or "already" in said:
        return "this is set twice: leave one of the two out"
    if "\\" in line and any(word in said for word in ("unescaped", "hex value", "escape")):
        return "a backslash means something else in \"...\": write a path in '...', or with / in it"
    before, equals, value = line.partition("=")
    value = value.partition("#")[0].strip()
    if not equals or line.lstrip().startswith((";", "//", "[")):
        return _no_setting(line, bare, said)
    if remedy := _of_number(value):
        return remedy
    if value.lower() in ("true", "false", "yes", "no", "on", "off", "none", "null"):
        return "write true or false, in small letters; leave out what is not set"
    if not value:
        return "there is no value behind ="
    if value[0] in "\"'" and (len(value) == 1 or value[0] not in value[1:]):
        return f"the closing {value[0]} is missing"
    if value[0] == "{":
        return "write these as lines of their own, key = value, below [section]"
    if value[0] == "=":
        return "one = stands between key and value"
    if re.match(r"[^\W\d]|[/~.]", value) and column <= len(before) + 2 + len(line) - len(before):
        return 'text stands in quotes: key = "text"'
    return _strange(bare) or (
        "nothing stands behind a value but a remark, which begins with #"
        if said.startswith("expected newline")
        else ""
    )


def _of_number(value: str) -> str:
    """Return what is wrong with ``value`` if it was to be a number, or numbers with points."""
    if re.fullmatch(r"\d+(\.\d+){2,}(:\d+)?", value):  # a version, an address
        return 'text stands in quotes: key = "text"'
    if re.fullmatch(r"0\d+", value):
        return "a number that begins with 0: leave that out, or write text in quotes"
    if re.fullmatch(r"[-+]?\d{1,3}([ ,._']\d{3})+([.,]\d+)?", value):
        return "write a number without marks between thousands, and its fraction with a point"
    if re.fullmatch(r"[-+]?\d+,\d+", value):
        return "write a point in a number, not a comma"
    if re.fullmatch(r"[-+]?(\d+\.|\.\d+)", value):
        return "write digits on both sides of a point, as in 0.5"
    if re.fullmatch(r"[-+]?[\d._]+\s*[A-Za-z%µμ°].*", value):
        return "write the number alone; its unit stands in the documentation"
    return ""


def _no_setting(line: str, bare: str, said: str) -> str:
    """Return what is wrong with a line that sets nothing."""
    text = line.strip()
    if text.startswith((";", "//")):
        return "a remark begins with #"
    if text.startswith("{"):
        return "this is no JSON: write key = value, below [section]"
    if text.startswith("[") and said.startswith("expected newline"):
        return "the name of a section has a line of its own"
    colon = re.match(r"\s*[\w-]+\s*:", line)
    return "write key = value, not key: value" if colon else _strange(bare)


def _strange(bare: str) -> str:
    """Return what is wrong with a character that TOML takes in quotes only, "" if none is there."""
    strange = next(
        (c for c in bare.partition("#")[0] if not " " <= c <= "~" and c not in "\t\r"), ""
    )
    if not strange:
        return ""
    if strange.isprintable():
        return f"{_named(strange)} stands outside of quotes: write it as on an English keyboard"
    return f"{_named(strange)} is a control character: delete it"


def _named(character: str) -> str:
    number = f"U+{ord(character):04X}"
    return f"{character} ({number})" if character.isprintable() else number


def _is_odd(character: str) -> bool:
    """Whether a word processor writes it where people type a quotation mark or a blank."""
    if character in _BLANKS:
        return True
    if ord(character) < 128:
        return character == "`"
    kind = unicodedata.category(character)
    return kind in ("Pi", "Pf") or kind in _BLANK_KINDS or character in "´″′‚„«»"


def _second_of_two(lines: list[str]) -> int:
    """Return the number of the line that sets what another one has set, 0 if none is found."""
    section, seen = "", set()
    for number, line in enumerate(lines, 1):
        bare = line.strip()
        if bare.startswith("["):
            section = f"{bare} {number}" if bare.startswith("[[") else bare
        elif bare and not bare.startswith("#") and "=" in bare:
            key = section, bare.partition("=")[0].strip().strip("\"'")
            if key in seen:
                return number
            seen.add(key)
    return 0


def _open_end(lines: list[str]) -> int:
    """Return the number of the last line that says something, 0 if none does."""
    return next((n for n in range(len(lines), 0, -1) if lines[n - 1].strip()), 0)


def _leaves(value: object, key: str) -> Iterator[tuple[str, object]]:
    """Yield every value in ``value`` that is no table or list, with the key that it stands at."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from _leaves(inner, f"{key}.{name}" if key else name)
        case list():
            for inner in value:
                yield from _leaves(inner, key)
        case _:
            yield key, value


def _not_meant(text: str, key: str) -> str:
    """Return what is wrong with a text that TOML takes and nobody means, "" if nothing."""
    name = key.rpartition(".")[2]
    control = next((c for c in text if unicodedata.category(c) == "Cc"), "")
    if control and name != "password":  # `login` says what is wrong with that
        return (
            f"has a control character in it (U+{ord(control):04X}): a path with backslashes "
            "stands in '...', not in \"...\""
        )
    if name == "password":
        return ""
    if re.match(r"\$\{?[A-Za-z_]|%[A-Za-z_]+%", text):
        return "begins with a variable of the shell: nothing is put in its place, write the value"
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text):
        return "is a path of Windows: on this system paths are written like /srv/edgefold"
    return ""
