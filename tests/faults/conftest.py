"""Harnesses that break things: each says why it cannot run where it may not."""

import shutil
import subprocess
from functools import cache

import pytest
from loop_disk import why_no_mount


@cache
def why_no_strace() -> str:
    """Return why strace injection cannot be used here, or an empty string."""
    if not shutil.which("strace"):
        return "strace is not installed"
    probe = ["strace", "-o", "/dev/null", "-e", "inject=close:error=EIO:when=999", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()}"


@pytest.fixture
def _strace() -> None:
    if why := why_no_strace():
        pytest.skip(why)


@pytest.fixture
def _mount() -> None:
    if why := why_no_mount():
        pytest.skip(why)
