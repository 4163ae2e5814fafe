"""Puts a task, its settings and one device's samples into the root file system of trial.sh."""

import sys
from pathlib import Path

import numpy as np

from tools.author.bundle.bundle_directory import write_bundle
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset

BROKER = "mqtt://127.0.0.1:1883"  # Mosquitto's own default: this machine only, no password

BROKER_TOML = f"""
[fleet]
name = "trial"
broker = "{BROKER}"
[storage]
directory = "/var/lib/edge-broker"
[[task]]
bundle = "/srv/edgefold/bundle"
[task.aggregation]
updates = 1
seconds = 5
min_seconds = 1
"""

AGENT_TOML = f"""
[device]
id = "board-1"
task = "digits"
[fleet]
name = "trial"
broker = "{BROKER}"
[training]
min_minutes = 0.05
"""


def main(root: Path) -> None:
    """Write below ``root``; the samples go to the inbox when the agent has made it."""
    data = load_dataset("digits")
    write_bundle(create_task("digits", data, TaskOptions(net="mlp")), root / "srv/edgefold/bundle")
    (root / "etc/edgefold").mkdir(parents=True, exist_ok=True)
    for name, text in (("broker.toml", BROKER_TOML), ("agent.toml", AGENT_TOML)):
        (root / "etc/edgefold" / name).write_text(text)
        (root / "etc/edgefold" / name).chmod(0o600)  # root's, and handed over by systemd
    rows = data.train_rows[:200]
    np.savez(root / "srv/edgefold/samples.npz", x=data.x[rows], y=data.y[rows])


main(Path(sys.argv[1]))
