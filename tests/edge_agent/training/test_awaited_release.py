"""A release that a device has waited for is looked at at once, not when the next look is due."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_fleet import Clock, Device, Files, Server, launch_here

from edge_agent.board.children import Child
from edge_agent.training.training_job import TRAINER
from tools.simulation.machines.memory_broker import MemoryBroker

LONG_S = 1000  # between two looks


class Dead:
    """A child that failed."""

    def poll(self) -> int:
        return 1

    def kill(self) -> None:
        return


@pytest.fixture
def patient(tmp_path: Path, broker: MemoryBroker, clock: Clock, server: Server) -> Device:
    """A device that looks every `LONG_S`, and has learned from release 1."""
    device = Device(tmp_path, broker, clock, server=server, training__check_seconds=LONG_S)
    device.add_samples(64)
    server.publish(Files(1))
    assert device.run(LONG_S + 100, until=lambda: device.status.updates_made == 1)
    return device


def test_it_is_trained_on_at_once(patient: Device, server: Server) -> None:
    assert patient.run(10, until=lambda: patient.status.updates_folded == 1)
    for number in (2, 3):
        server.publish(Files(number))
        assert patient.run(10, until=lambda n=number: patient.status.updates_folded == n)


def test_while_an_answer_is_due_the_next_release_may_have_it(
    patient: Device, server: Server
) -> None:
    """What was sent is stored at the server and in no release yet."""
    server.verdict = "stored"
    server.publish(Files(2))
    assert patient.run(10, until=lambda: patient.status.release == 2)
    assert patient.status.updates_made == patient.status.updates_waiting == 1
    patient.run(LONG_S - 100)
    assert patient.status.updates_made == 1
    assert patient.run(200, until=lambda: patient.status.updates_made == 2)


def test_after_a_failure_it_is_no_reason_to_try_again_sooner(
    device: Device, server: Server
) -> None:
    starts: list[float] = []

    def launch(module: str, arguments: Sequence[str], *, log: Path | str | None) -> Child:
        if module != TRAINER:
            return launch_here(module, arguments, log=log)
        starts.append(device.clock.now)
        return Dead()

    device.launch = launch
    device.add_samples(64)
    server.publish(Files(1))
    assert device.run(60, until=lambda: len(starts) == 1)
    server.publish(Files(2))
    assert device.run(10, until=lambda: device.status.release == 2)
    assert len(starts) == 1
    assert device.run(60, until=lambda: len(starts) == 2)
    assert starts[1] - starts[0] >= 15
