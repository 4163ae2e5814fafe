"""onnxruntime must not report to anybody from a device (docs/decisions/0004)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DOORS = (
    "models.learning.training_loop",
    "edge_agent.inference.inference_program",
    "broker.releases.hold_out",
    "models.learning.measurement",
)


@pytest.mark.parametrize("door", DOORS)
def test_onnxruntime_writes_no_telemetry_into_the_home_directory(door: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    subprocess.run(
        [sys.executable, "-c", f"import {door}, onnxruntime"],
        env=environment | {"HOME": str(tmp_path)},
        check=True,
        timeout=60,
    )
    assert list(tmp_path.rglob("*")) == []
