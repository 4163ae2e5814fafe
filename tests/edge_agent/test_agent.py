"""The whole agent in virtual time: what it learns arrives, what is released runs."""

import numpy as np
from tiny_fleet import TASK, Device, Files, Server, tiny_spec

from models.codec.chain import decompress
from models.transport.memory import MemoryBroker
from models.transport.topics import Topics


def test_an_agent_installs_learns_sends_and_forgets_what_is_folded(
    device: Device, server: Server, broker: MemoryBroker, topics: Topics
) -> None:
    Files(1).publish(broker, topics)
    device.add_samples(64)
    assert device.run(60, until=lambda: device.status.updates_folded == 1)
    status = device.status
    assert (status.release, status.updates_made, status.updates_waiting) == (1, 1, 0)
    assert status.task == TASK
    assert 0 <= (status.accuracy or -1) <= 1
    assert status.samples in (51, 52)  # a fifth of 64 is held out
    (payload,) = server.updates.values()
    assert np.any(decompress(payload, tiny_spec().shared))
