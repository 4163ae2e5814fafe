"""The tables of settings in docs are those of the programs: every key, default and range."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

import edge_agent.config as agent
from broker.config import (
    Config,
    DownlinkPlan,
    EvaluationPolicy,
    FleetConfig,
    FoldPolicy,
    ReportPolicy,
    StorageConfig,
    TaskConfig,
    TrainingConfig,
)
from broker.learning_policy import LearningPolicy
from models.protocol.manifest import CodecPlan

DOCS = Path(__file__).parents[1] / "docs"

Key = tuple[str, str]  # section and name

SERVER: dict[str, type[msgspec.Struct]] = {
    "": Config,
    "fleet": FleetConfig,
    "storage": StorageConfig,
    "task": TaskConfig,
    "task.aggregation": FoldPolicy,
    "task.codec": CodecPlan,
    "task.downlink": DownlinkPlan,
    "task.evaluation": EvaluationPolicy,
    "task.learning": LearningPolicy,
    "task.report": ReportPolicy,
    "task.training": TrainingConfig,
}
AGENT: dict[str, type[msgspec.Struct]] = {
    "device": agent.Device,
    "fleet": agent.Fleet,
    "storage": agent.Storage,
    "samples": agent.Samples,
    "training": agent.Training,
    "inference": agent.Inference,
    "limits": agent.Limits,
}
OPTIONAL = "task.evaluation"  # a section that may be left out whole, with what it requires
NO_KEYS = {("", "origin")}  # set by the reader, refused in the file
# None in the program, and in the docs what comes of it.
WORDED = {
    ("fleet", "client_id"),
    ("samples", "inbox"),
    ("samples", "keep_rejected_mb"),
    ("inference", "socket"),
    ("inference", "group"),
    ("inference", "mode"),
    ("inference", "serve"),
}


class Documented(NamedTuple):
    default: str
    meaning: str


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the table below ``header``."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    start = lines.index(header) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def split_defaults(cell: str, count: int) -> list[str]:
    """One default for each of ``count`` keys of a row, or one for all."""
    parts = cell.split(", ")
    return parts if len(parts) == count else [cell] * count


def of_server() -> dict[Key, Documented]:
    found = {}
    for key, default, meaning in rows("server.md", "| key | default | what |"):
        names = re.findall(r"`([^`]*)`", key)
        section = re.match(r"\[+([a-z.]+)\]+ ", names[0])
        names[0] = names[0].split()[-1]
        for name, value in zip(names, split_defaults(default, len(names)), strict=True):
            found[(section[1] if section else "", name)] = Documented(value, meaning)
    return found


def of_agent() -> dict[Key, Documented]:
    found, section = {}, ""
    for part, key, default, meaning in rows("agent.md", "| section | key | default | meaning |"):
        section = part.strip("`") or section
        names = re.findall(r"`([^`]*)`", key)
        for name, value in zip(names, split_defaults(default, len(names)), strict=True):
            found[(section, name)] = Documented(value, meaning)
    return found


def examples(page: str) -> set[Key]:
    """The keys of the first TOML file on a page: all that one must write."""
    text = (DOCS / page).read_text("utf-8")
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block
    values: dict[str, Any] = tomllib.loads(block[1])
    sections = {name: v[0] if isinstance(v, list) else v for name, v in values.items()}
    return {(section, name) for section, keys in sections.items() for name in keys}


def fields_of(structs: dict[str, type[msgspec.Struct]]) -> dict[Key, msgspec.structs.FieldInfo]:
    """Every setting, without those that are sections of their own."""
    return {
        (section, field.encode_name): field
        for section, struct in structs.items()
        for field in msgspec.structs.fields(struct)
        if f"{section}.{field.encode_name}".strip(".") not in structs
        and (section, field.encode_name) not in NO_KEYS
    }


PAGES = {
    "server.md": (of_server(), SERVER),
    "agent.md": (of_agent(), AGENT),
}


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_is_in_the_docs_and_all_in_the_docs_are_settings(page: str) -> None:
    documented, structs = PAGES[page]
    settings = set(fields_of(structs))
    assert documented.keys() | examples(page) == settings
    assert len(documented) > 25


@pytest.mark.parametrize("page", PAGES)
def test_what_must_be_written_is_in_the_example_and_nothing_else(page: str) -> None:
    required = {
        key
        for key, field in fields_of(PAGES[page][1]).items()
        if field.required and key[0] != OPTIONAL
    }
    assert examples(page) == required


@pytest.mark.parametrize(
    ("page", "key"),
    [(page, key) for page, (documented, _) in PAGES.items() for key in documented],
)
def test_a_default_in_the_docs_is_that_of_the_program(page: str, key: Key) -> None:
    documented, structs = PAGES[page]
    field = fields_of(structs)[key]
    text = documented[key].default
    if field.required:
        assert text == ("none" if key[0] == OPTIONAL else "")
    elif field.default is None:
        assert (text == "none") != (key in WORDED)
    elif isinstance(field.default, Path):
        assert text == f"`{field.default}`"
    elif isinstance(field.default, bool):
        assert text == str(field.default).lower()
    else:
        assert ast.literal_eval(text.strip("`")) == field.default


@pytest.mark.parametrize(
    ("page", "key"),
    [(page, key) for page, (documented, _) in PAGES.items() for key in documented],
)
def test_a_range_or_a_unit_in_the_docs_is_that_of_the_program(page: str, key: Key) -> None:
    documented, structs = PAGES[page]
    field, meaning = fields_of(structs)[key], documented[key].meaning
    limits = re.search(r"\b(\d+) to (\d+)\b(?! minutes)", meaning)
    schema = msgspec.json.schema(field.type, schema_hook=lambda kind: {"type": "string"})
    if limits and "minimum" in schema and "maximum" in schema:
        assert (int(limits[1]), int(limits[2])) == (schema["minimum"], schema["maximum"])
    for choice in schema.get("enum", ()):
        if choice is not None and field.default is not None:
            assert f'"{choice}"' in meaning + documented[key].default, choice


def test_every_section_of_the_files_is_compared() -> None:
    assert {field.encode_name for field in msgspec.structs.fields(agent.Config)} == AGENT.keys()
    for structs in (SERVER, AGENT):
        of_them = {
            field.encode_name: field.type
            for struct in structs.values()
            for field in msgspec.structs.fields(struct)
        }
        known = set(structs.values())
        missed = {
            kind
            for found in of_them.values()
            for kind in getattr(found, "__args__", (found,))
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        } - known
        assert missed == set()
