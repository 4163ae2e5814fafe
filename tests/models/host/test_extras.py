"""What to type where a library is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from models.host.extras import EXTRAS, how_to_install

SOURCE = Path(__file__).parents[3]
SQUATTABLE = re.compile(r"pip install [^\n`]*?(?<![./\w])edgefold(\[|\b(?![-/.]))")


@pytest.mark.parametrize("library", EXTRAS)
def test_the_command_installs_from_the_checkout_into_this_environment(library: str) -> None:
    said = how_to_install(library)
    assert said.startswith("in the checkout of edgefold: ")
    assert f"{sys.prefix}/bin/pip install -c constraints.txt '.[" in said


@pytest.mark.parametrize("extra", sorted(set(EXTRAS.values())))
def test_every_extra_that_is_named_exists(extra: str) -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]


def test_a_library_that_is_not_ours_comes_by_its_own_name() -> None:
    assert how_to_install("pillow").endswith(f"{sys.prefix}/bin/pip install pillow")


def test_an_environment_of_root_is_installed_into_with_sudo() -> None:
    """As an ordinary user; this test may run as root, who may write everywhere."""
    code = "import os; os.access = lambda *_: False;"
    code += "from models.host.extras import how_to_install as h"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(h('pillow'))"],
        capture_output=True,
        text=True,
        cwd=SOURCE,
        check=True,
    )
    assert done.stdout.startswith("sudo ")


def test_nothing_we_write_installs_a_name_that_anybody_may_take() -> None:
    """Messages, pages, scripts: edgefold is installed from its checkout, never by name."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.sh", "*.toml", "Makefile"],
        capture_output=True,
        text=True,
        cwd=SOURCE,
        check=True,
    )
    wrong = [
        f"{name}: {line.strip()}"
        for name in listed.stdout.split()
        if name not in ("models/host/extras.py", "tests/models/host/test_extras.py")
        for line in (SOURCE / name).read_text().splitlines()
        if SQUATTABLE.search(line) and "--no-index" not in line
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "is_wrong"),
    [
        ("pip install 'edgefold[demo]'", True),
        ("pip install edgefold", True),
        ("/opt/edgefold/bin/pip install -c constraints.txt 'edgefold[broker]'", True),
        ("pip install ./edgefold", False),
        ("sudo /opt/edgefold/bin/pip install -c constraints.txt '.[broker]'", False),
        ("pip install edgefold-client", False),
    ],
)
def test_the_pattern_knows_such_a_name(line: str, is_wrong: bool) -> None:
    assert bool(SQUATTABLE.search(line)) is is_wrong
