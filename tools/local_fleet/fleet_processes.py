"""The processes of a demo: one aggregator and some agents, each with its own directory and log.

They are real operating-system processes that know nothing of the demo. Each device reaches the
broker through a TCP relay of its own, which counts what passes and can be cut.
"""

import contextlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import psutil

from edge_agent.board.children import peak_rss_mb, program_name
from edge_agent.training.training_job import TRAINER
from tools.local_fleet.process import Process
from tools.local_fleet.tcp_relay import Relay
from tools.local_fleet.toml_text import to_toml

__all__ = ["PORTION", "STORAGE_MB", "Access", "Device", "Server"]

PORTION = 4  # parts of samples that are worth another training on the same release
# Between two looks at whether to train: time for the release that the last update went into to
# arrive. Else all devices would train on the last but one, for ever in step (measured: accuracy
# swings by 20 points, as of SGD with a delay of one).
CHECK_S = 1.0
STORAGE_MB = 512  # of a device; a sixth of it is the most that a release may have


class Access:
    """How to reach the MQTT broker."""

    def __init__(
        self, fleet: str, host: str, port: int, username: str | None, password: str | None
    ) -> None:
        self.fleet = fleet
        self.host = host
        self.port = port
        self.username = username
        self.password = password

    def section(self, *, host: str | None = None, port: int | None = None) -> dict[str, object]:
        """Return the section ``[fleet]`` of a configuration; by way of ``host`` and ``port``."""
        section: dict[str, object] = {
            "name": self.fleet,
            "broker": f"mqtt://{host or self.host}:{port or self.port}",
        }
        if self.username is not None and self.password is not None:
            section |= {"username": self.username, "password": self.password}
        return section


class Server(Process):
    """The aggregator."""

    def __init__(self, directory: Path, access: Access, task: Mapping[str, object]) -> None:
        self.directory = directory / "server"
        self.directory.mkdir(parents=True, exist_ok=True)
        config = directory / "broker.toml"
        config.touch(mode=0o600)  # there may be a password in it
        config.write_text(
            to_toml(
                {
                    "fleet": access.section() | {"client_id": f"{access.fleet}-aggregator"},
                    "storage": {"directory": str(self.directory)},
                    "task": [task],
                }
            )
        )
        super().__init__(
            "aggregator",
            ["broker", "run", "--config", str(config)],
            directory / "aggregator.log",
        )


class Device(Process):
    """An agent, its samples that have not arrived yet, and its own line to the broker."""

    def __init__(
        self,
        name: str,
        directory: Path,
        access: Access,
        task: str,
        samples: tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]],
        *,
        parts: int,
        first_share: float = 0.0,
        max_mb: int = STORAGE_MB,
        min_new_samples: int | None = None,
        holdout_share: float | None = None,
    ) -> None:
        """``min_new_samples``: worth a training on the same release; by default a whole portion.

        ``holdout_share``: of its samples, which the agent keeps to measure with; None: its default.
        """
        self.id = name
        self.directory = directory / self.id
        self.inbox = self.directory / "inbox"
        self.inbox.mkdir(parents=True, exist_ok=True)
        self.relay = Relay((access.host, access.port))
        self.state = self.directory / "state"
        self.peak_rss_mb = {"agent": 0.0, "trainer": 0.0}
        self.samples_delivered = 0
        self.what_we_did = ""  # "off line", "killed"
        self._access = access
        self._task = task
        self._delivered = 0
        self._max_mb = max_mb
        self._min_new_samples = min_new_samples
        self._samples: dict[str, object] = {"inbox": str(self.inbox)}
        if holdout_share is not None:
            self._samples["holdout_share"] = holdout_share
        self._parts = _cut(samples, parts, first_share)
        super().__init__(
            self.id,
            ["edge_agent", "run", "--config", str(self.directory / "agent.toml")],
            directory / f"{self.id}.log",
        )

    def __enter__(self) -> Self:
        self.relay.__enter__()
        (self.directory / "agent.toml").touch(mode=0o600)
        (self.directory / "agent.toml").write_text(
            to_toml(
                {
                    "device": {"id": self.id, "task": self._task},
                    "fleet": self._access.section(host=self.relay.host, port=self.relay.port),
                    "storage": {"directory": str(self.state), "max_mb": self._max_mb},
                    "samples": self._samples,
                    "training": {
                        "min_samples": 8,
                        "min_new_samples": self._min_new_samples or self._portion_size(),
                        "min_minutes": 0,
                        "check_seconds": CHECK_S,
                        "min_free_mb": 0,
                        "max_load": 1000.0,  # here all devices share one machine
                    },
                }
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.cut()

    def deliver(self, parts: int = 1) -> int:
        """Let the next parts of the samples arrive in the inbox; return how many samples."""
        taken = self._parts[self._delivered : self._delivered + parts]
        if not taken:
            return 0
        self._delivered += len(taken)
        x, y = (np.concatenate(arrays) for arrays in zip(*taken, strict=True))
        self.samples_delivered += len(y)
        draft = self.inbox / f".part-{self._delivered}.npz"
        np.savez(draft, x=x, y=y)
        draft.rename(self.inbox / f"part-{self._delivered}.npz")  # whole from the first moment
        return len(y)

    def _portion_size(self) -> int:
        """The new samples in `PORTION` parts at least, of those that the agent trains on."""
        part = min(len(y) for _, y in self._parts)
        return max(1, int(0.7 * PORTION * part))

    def trainer(self) -> psutil.Process | None:
        """Return the training child, if one is at work now."""
        return self.child(TRAINER)

    def child(self, program: str) -> psutil.Process | None:
        """Return the child that is at a job of ``program`` now, if there is one."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children() if self.pid else ():
                with contextlib.suppress(psutil.Error):
                    if child.name() == program_name(program):
                        return child
        return None

    def measure(self) -> None:
        """Note the peak memory of the agent and of its trainer, as the kernel has it."""
        trainer = self.trainer()
        for name, pid in (("agent", self.pid), ("trainer", trainer.pid if trainer else 0)):
            with contextlib.suppress(OSError):  # it has ended
                peak = peak_rss_mb(pid) if pid else 0.0
                self.peak_rss_mb[name] = max(self.peak_rss_mb[name], peak)


def _cut(
    samples: tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]],
    parts: int,
    first_share: float,
) -> list[tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]]:
    """Return a first part with ``first_share`` of the samples, and ``parts`` of the rest."""
    x, y = samples
    first = round(len(y) * first_share)
    bounds = [0, *np.linspace(first, len(y), parts + 1).astype(int)]
    return [
        (x[start:end], y[start:end]) for start, end in itertools.pairwise(bounds) if end > start
    ]
