"""Runs one side of a benchmark in a process of its own, which says its figures as JSON."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import EdgefoldError
from tools.child_environment import child_environment

__all__ = ["run_child"]


def run_child(
    module: str, arguments: Sequence[str], *, environment: Mapping[str, str], what: str
) -> Any:
    """Run ``python -m module arguments`` and return what it printed.

    ``environment`` is added to ours; ``what`` names the measurement in an error.

    Raises:
        EdgefoldError: the child failed.
    """
    child = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=child_environment(environment),
        check=False,
    )
    if child.returncode:
        reason = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise EdgefoldError(f"{what}: {reason[0]}")
    return json.loads(child.stdout)
