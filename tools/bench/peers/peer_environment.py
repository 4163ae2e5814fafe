"""The environments in which the peers run: virtual ones of their own, beside ours."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

from models.errors import UsageError
from tools.bench.peers import programs
from tools.bench.peers.peer_job import PreparedJob
from tools.bench.peers.programs.peer_notes import JOB_VARIABLE, NOTES_VARIABLE

__all__ = ["PEERS", "cache_directory", "environment", "install", "programs_tree", "require"]

# name -> (what is installed, the program by which we know that it is there)
PEERS = {"flower": ("flwr==1.41.0", "flwr"), "nvflare": ("nvflare==2.9.0", "nvflare")}


def cache_directory() -> Path:
    """Return where `install` makes environments: edgefold's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgefold" / "peers"


def require(name: str, directory: Path) -> Path:
    """Return the virtual environment ``directory`` if the peer is in it.

    Raises:
        UsageError: it is not, or torch is not there too.
    """
    program = directory / "bin" / PEERS[name][1]
    if not program.exists():
        raise UsageError(
            f"--venv-{name} {directory}: there is no {program}; make it with python3 -m venv "
            f"{directory} and {directory}/bin/pip install {PEERS[name][0]}, or ask for --install"
        )
    missing = subprocess.run(
        [str(directory / "bin" / "python"), "-c", "import torch, numpy"],
        capture_output=True,
        text=True,
        check=False,
    )
    if missing.returncode:
        raise UsageError(
            f"--venv-{name} {directory}: {missing.stderr.strip().splitlines()[-1]}; its clients "
            "train with torch: install it there, or ask for --install"
        )
    return directory.resolve()


def install(name: str) -> Path:
    """Make the peer's environment in the cache, unless it is there, and return it.

    torch is ours, not a second copy: a .pth file adds our packages after the peer's own.

    Raises:
        UsageError: pip failed; with what it said.
    """
    wanted, program = PEERS[name]
    directory = cache_directory() / wanted.replace("==", "-")
    if (directory / "bin" / program).exists():
        share_torch(directory)  # whoever was interrupted last time
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(directory)],
        [str(directory / "bin" / "python"), "-m", "pip", "install", "--quiet", wanted],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
            raise UsageError(f"{wanted} could not be installed: {' | '.join(last)}")
    share_torch(directory)
    return directory


def share_torch(directory: Path) -> None:
    """Let the environment find the torch that we have."""
    ours = Path(torch.__file__).parents[1]
    pure = sysconfig.get_path("purelib", "venv", {"base": str(directory)})
    Path(pure, "zz_shared.pth").write_text(f"{ours}\n")


def programs_tree(directory: Path) -> Path:
    """Copy what the peers run into ``directory``, under the names by which it imports itself."""
    source = Path(programs.__path__[0])
    target = directory.joinpath(*programs.__name__.split("."))
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    package = target.parent
    while package != directory:
        (package / "__init__.py").touch()
        package = package.parent
    return directory


def environment(
    venv: Path, job: PreparedJob, notes: Path, tree: Path, **more: str
) -> dict[str, str]:
    """Return all that a peer's program finds in its environment."""
    return {
        "PATH": f"{venv / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "HOME": str(notes),
        "LANG": "C.UTF-8",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tree),
        JOB_VARIABLE: str(job.directory / "job.json"),
        NOTES_VARIABLE: str(notes),
        **more,
    }
