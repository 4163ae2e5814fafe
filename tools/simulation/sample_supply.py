"""Samples that applications hand over to the agents of a simulated fleet."""

import os
from pathlib import Path

from edge_agent.samples.sample_store import segment_name
from tools.simulation.learning.light_learning import Learning, LightLearning, sample_file
from tools.simulation.machines.device_machine import DeviceMachine
from tools.simulation.machines.machine import EPOCH
from tools.simulation.machines.virtual_disk import untouched

__all__ = ["SampleSupply"]

SETTLED_S = 2.0  # the agent leaves a file alone that is still being written
DAILY = (13, 3)  # samples that a planned device gets at a time, to train on and to measure with


class SampleSupply:
    """Brings what there is to learn from, whatever an agent is doing.

    ``is_planning``: what stands for a light task's samples lies in two files below ``root``, and is
    where the intake would have put it.
    """

    def __init__(self, learning: Learning, root: Path, *, is_planning: bool) -> None:
        self._learning = learning
        self._is_planning = is_planning
        self._brought: dict[str, int] = {}  # how many files, by device
        self._segments: list[Path] = []
        if is_planning and isinstance(learning, LightLearning):
            for count in DAILY:
                self._segments.append(root / f"{count}.npz")
                self._segments[-1].write_bytes(sample_file(count))

    def bring(self, device: DeviceMachine) -> None:
        """An application hands over some samples, if there are more."""
        if device.disk.dead or not device.disk_is_fine:
            return
        number = self._brought.get(device.name, 0)
        data = self._learning.samples(device.number, number)
        if data is None:
            return
        self._brought[device.name] = number + 1
        if self._segments:
            self._feed(device, number + 1)
            return
        with untouched():
            inbox = device.config.inbox
            inbox.mkdir(parents=True, exist_ok=True)
            path = inbox / f"{number + 1:06d}.npz"
            path.write_bytes(data)
            moment = EPOCH + device.timeline.now
            os.utime(path, (moment, moment))
        if self._is_planning and device.agent is not None:
            device.agent.parts.inbox.wake()
            device.timeline.after(SETTLED_S, device.wake)

    def _feed(self, device: DeviceMachine, number: int) -> None:
        if device.agent is None:
            return
        samples = device.agent.parts.samples
        for source, count, folder in zip(
            self._segments, DAILY, (samples.train, samples.holdout), strict=True
        ):
            name = segment_name(number * count, count, f"{number:016x}", 0)
            os.link(source, f"{folder}/{name}")
        samples.refresh()
        device.wake()
