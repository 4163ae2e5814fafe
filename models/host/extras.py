"""What to type where a library is missing: the same sentence in every message.

Never ``pip install 'edgefold[...]'``: edgefold is on no package index, and whoever takes that name
there would own those who follow our messages.
"""

import os
import shlex
import sys
from pathlib import Path

__all__ = ["EXTRAS", "how_to_install"]

EXTRAS = {  # library -> the extra of our distribution that brings it (pyproject.toml)
    "onnx": "tasks",
    "onnxscript": "author",
    "torch": "author",
    "amqtt": "demo",
    "matplotlib": "demo",
    "rich": "demo",
    "sklearn": "demo",
}


def how_to_install(library: str) -> str:
    """Return the command that brings ``library``, an import name, into this Python environment.

    What one of our extras brings is installed from the checkout, with the pinned versions; any
    other library comes from the package index by its own name.
    """
    pip = f"{_sudo()}{shlex.quote(str(Path(sys.prefix) / 'bin/pip'))} install"
    if library not in EXTRAS:
        return f"{pip} {library}"
    return f"in the checkout of edgefold: {pip} -c constraints.txt '.[{EXTRAS[library]}]'"


def _sudo() -> str:
    return "" if os.access(sys.prefix, os.W_OK) else "sudo "
