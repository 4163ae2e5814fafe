"""What a payload decodes to and what onnxruntime makes of it, here and on an emulated Pi 4.

``make arm`` sets up the emulated Python (EDGEFOLD_ARM names it) and runs this with it too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
VECTORS = TESTS / "vectors"
ARM = os.environ.get("EDGEFOLD_ARM")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("python", "machines"),
    [
        pytest.param(sys.executable, {"x86_64", "aarch64"}, id="here"),
        pytest.param(
            ARM,
            {"aarch64"},
            id="arm",
            marks=pytest.mark.skipif(ARM is None, reason="make arm sets up the emulation"),
        ),
    ],
)
def test_payloads_mean_the_same_on_every_processor(python: str, machines: set[str]) -> None:
    done = subprocess.run(
        [python, str(Path(__file__).with_name("arm_program.py")), str(VECTORS)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    print(found)
    assert found["machine"] in machines
    golden = json.loads((VECTORS / "payloads.json").read_text("utf-8"))["payloads"]
    assert found["digests"] == {one["file"]: one["sha256"] for one in golden}
    assert found["averages_that_differ"] == []
    assert max(found["patches"].values()) < 2e-6
    assert found["compact"]["16"] < 0.02
    assert found["compact"]["256"] < 1e-4
