"""A small fleet of real processes, for tests of the whole system."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from models.task.bundle import Bundle
from tools.author.bundle.bundle_directory import write_bundle
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.datasets import load_dataset
from tools.author.data.device_split import split_devices
from tools.author.data.labeled_data import Dataset
from tools.local_fleet.fleet_facts import FleetView
from tools.local_fleet.fleet_processes import Access, Device, Server
from tools.local_fleet.fleet_watch import Watch
from tools.local_fleet.local_broker import LocalBroker
from tools.local_fleet.process import check_alive, stop_all


class SmallFleet:
    """Two devices, one server and a broker; ``releases`` from the first to the last one.

    ``site``: the devices connect to this broker instead; ``sections`` of the task, beside ours.
    """

    def __init__(
        self,
        broker: LocalBroker,
        directory: Path,
        bundle: Bundle,
        data: Dataset,
        *,
        releases: int,
        site: LocalBroker | None = None,
        sections: Mapping[str, object] | None = None,
    ) -> None:
        self.broker = broker
        self.releases = releases
        access = _access(broker)
        write_bundle(bundle, directory / "bundle")
        held_out = directory / "held-out.npz"
        np.savez(held_out, x=data.x[data.test_rows], y=data.y[data.test_rows])
        self.server = Server(
            directory,
            access,
            {
                "bundle": str(directory / "bundle"),
                "releases": releases,
                "aggregation": {
                    "updates": 2,
                    "seconds": 2.0,
                    "min_seconds": 0,
                    "patience": 0,
                },
                "training": {"epochs": 3.0, "batch": 8, "learning_rate": 0.03},
                "codec": {"bytes": 2000},
                "evaluation": {"data": str(held_out)},
                **(sections or {}),
            },
        )
        self.devices: list[Device] = []
        holdout = {}
        for number, part in enumerate(split_devices(data, 2, seed=1, limit=200), 1):
            rows = part.train
            device = Device(
                f"device-{number}",
                directory,
                _access(site or broker),
                bundle.spec.task,
                (data.x[rows], data.y[rows]),
                parts=40,
                first_share=0.5,
                min_new_samples=1,
            )
            self.devices.append(device)
            holdout[device.id] = (data.x[part.holdout], data.y[part.holdout])
        self.watch = Watch(
            self.server, self.devices, parameters=bundle.spec.shared_size, holdout=holdout
        )

    def start(self, stack: ExitStack) -> None:
        stack.callback(stop_all, [*self.devices, self.server])
        self.server.start()
        for device in self.devices:
            stack.enter_context(device)
            device.deliver()
            device.start()

    def wait_until(self, claim: Callable[[FleetView], bool], *, within_s: float) -> FleetView:
        deadline = time.monotonic() + within_s
        while True:
            fleet = self.watch.look()
            if claim(fleet):
                return fleet
            check_alive(self.devices)
            if time.monotonic() > deadline:
                logs = "\n".join(p.last_words() for p in [self.server, *self.devices])
                pytest.fail(f"not within {within_s:.0f} s: {fleet}\n{self.watch.account()}\n{logs}")
            time.sleep(0.2)

    def newest(self, fleet: FleetView) -> int:
        return fleet.releases[-1].number if fleet.releases else 0

    def has_settled(self, fleet: FleetView) -> bool:
        """All devices run the last release, and nothing is on its way any more."""
        newest = self.newest(fleet)
        return (
            newest >= self.releases
            and all(d.release == newest and not d.waiting for d in fleet.devices)
            and not self.watch.account().waiting
        )

    def check(self, fleet: FleetView) -> None:
        """Nothing was lost, nothing counted twice, and it was good for something."""
        account = self.watch.account()
        assert account.lost == 0
        assert account.folded_twice == 0
        assert account.made == account.folded + account.refused + account.merged
        first, last = fleet.releases[0], fleet.releases[-1]
        assert first.accuracy is not None
        assert last.accuracy is not None
        assert last.accuracy > first.accuracy


def _access(broker: LocalBroker) -> Access:
    return Access("test", broker.host, broker.port, broker.username, broker.password)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def bundle(digits: Dataset) -> Bundle:
    return create_task("tiny", digits, TaskOptions(net="mlp"))


StartFleet = Callable[..., SmallFleet]
MakeFleet = Callable[..., SmallFleet]


@pytest.fixture
def start_fleet(tmp_path: Path, bundle: Bundle, digits: Dataset) -> Iterator[StartFleet]:
    """Return a function that starts a `SmallFleet` on a broker of the kind that it is given."""
    with ExitStack() as stack:

        def start(
            kind: Literal["auto", "mosquitto", "embedded"],
            *,
            releases: int,
            sections: Mapping[str, object] | None = None,
        ) -> SmallFleet:
            broker = stack.enter_context(LocalBroker(kind, directory=tmp_path / "mqtt"))
            fleet = SmallFleet(
                broker, tmp_path, bundle, digits, releases=releases, sections=sections
            )
            fleet.start(stack)
            return fleet

        yield start


@pytest.fixture
def make_fleet(tmp_path: Path, bundle: Bundle, digits: Dataset) -> MakeFleet:
    """Return a function that makes a `SmallFleet`, which the test itself starts."""

    def make(
        broker: LocalBroker, *, releases: int = 1000, site: LocalBroker | None = None
    ) -> SmallFleet:
        return SmallFleet(broker, tmp_path, bundle, digits, releases=releases, site=site)

    return make
