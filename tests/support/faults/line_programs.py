"""The two ends of a slow line as programs: ``server`` makes a release, ``device`` fetches it and
sends an update; each prints one JSON line. For tests/faults/test_slow_transfers.py.
"""

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from broker.assembly import ServedTask
from broker.assembly import assemble as assemble_server
from broker.config import Config as ServerConfig
from broker.config import FleetConfig, FoldPolicy, StorageConfig, TaskConfig
from edge_agent import config as settings
from edge_agent.board.installation import open_installation
from edge_agent.build import Surroundings, assemble
from edge_agent.training.governor import Vitals
from edge_agent.updates.outbox_contents import Trained
from models.protocol.update import UpdateHeader, encode_update
from models.transport.link import Disconnected
from models.transport.mqtt import MqttLink
from tools.simulation.learning.light_codec import light_codec
from tools.simulation.learning.light_learning import bundle

FLEET, TASK = "slow", "light"


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def server(directory: Path, host: str, port: int, size: int) -> None:
    """Serve release 1, whose files have about ``size`` bytes, until killed."""
    section = TaskConfig(
        bundle="",
        releases=1,
        aggregation=FoldPolicy(min_seconds=0, patience=0, updates=9, seconds=9999),
    )
    parameters = size // 8
    task = bundle(TASK, parameters)  # its zeros are in infer.onnx and in the parameters
    task = task._replace(train=os.urandom(max(1, size - 8 * parameters - 2000)))
    config = ServerConfig(
        fleet=FleetConfig(FLEET, "mqtt://here"),
        storage=StorageConfig(str(directory)),
        task=(section,),
    )
    link = MqttLink(host, port, client_id="server", will=None)
    with light_codec():
        tasks = [ServedTask(section, task, None)]
        running = assemble_server(config, tasks, link, time.monotonic(), time.time())
        link.start()
        say(ready=True)
        while True:
            for event in link.poll(0.05):
                running.handle(event, time.monotonic(), time.time())
            running.tick(time.monotonic(), time.time())


def device(directory: Path, host: str, port: int, size: int, keepalive_s: int) -> None:
    """Install the release, then send one update of ``size`` bytes."""
    config = settings.Config(
        device=settings.Device("device-1", TASK),
        fleet=settings.Fleet(FLEET, "mqtt://there"),
        storage=settings.Storage(directory),
        training=settings.Training(enabled=False),
        inference=settings.Inference(enabled=False),
    )
    directory.mkdir(parents=True)
    link = MqttLink(host, port, client_id="device-1", will=None, keepalive_s=keepalive_s)
    surroundings = Surroundings(
        launch=lambda module, arguments, *, log: sys.exit("nothing shall be launched"),
        vitals=lambda: Vitals(None, False, 1e6, 0.0, 1.0, 1.0),
        wall_clock=time.time,
        rng=random.Random(1),
    )
    installation = open_installation(directory, device="device-1", task=TASK)
    agent = assemble(config, installation, link, surroundings)
    parts = agent.parts
    drops = 0

    def run(until: object) -> float:
        nonlocal drops
        began = time.monotonic()
        while not until():  # type: ignore[operator]
            now = time.monotonic()
            for event in link.poll(0.02):
                drops += isinstance(event, Disconnected)
                agent.handle(event, now)
            agent.tick(now)
        return time.monotonic() - began

    agent.start(time.monotonic())
    run(lambda: link.window() > 0)
    down = link.traffic().bytes_down
    download_s = run(lambda: parts.slots.release == 1)
    downloaded = link.traffic().bytes_down - down
    payload = os.urandom(size - 100)
    header = UpdateHeader(
        TASK, 1, 10, 4, 1.0, 0.5, None, len(payload), hashlib.sha256(payload).hexdigest()
    )
    data = encode_update(header, payload)
    head = data[: -len(payload)]
    trained = Trained(
        job=1,
        base=1,
        header=head,
        payload=payload,
        residual=None,
        personal=None,
        merged=(),
        lost=0,
    )
    up = link.traffic().bytes_up
    parts.outbox.commit(trained, chunk_size=65536, facts={})
    upload_s = run(lambda: all(entry.state == "stored" for entry in parts.outbox.waiting()))
    say(
        download_s=download_s,
        upload_s=upload_s,
        bytes_down=downloaded,
        bytes_up=link.traffic().bytes_up - up,
        drops=drops,
    )


if __name__ == "__main__":
    kind, folder, host, port, size, *rest = sys.argv[1:]
    if kind == "server":
        server(Path(folder), host, int(port), int(size))
    else:
        device(Path(folder), host, int(port), int(size), int(rest[0]))
