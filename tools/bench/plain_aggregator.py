"""What one writes in an afternoon: an MQTT subscriber that averages whole float32 deltas.

The yardstick of ``edgefold bench server``, and its load (`feed`). The script keeps everything in
memory: what it has acknowledged is gone when it ends, nothing is checked, and an update that comes
twice counts twice.
``python -m tools.bench.plain_aggregator HOST PORT UPDATES`` publishes the mean of every so many.
"""

import io
import sys
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion

from models.errors import TransientError

__all__ = ["READY", "feed", "packed"]

UPDATES = "plain/update"  # topic below which devices publish
MODEL = "plain/model"
READY = "subscribed"  # on stdout
AHEAD = 16  # messages that the load sends ahead


class _Mean:
    def __init__(self, every: int) -> None:
        self._every = every
        self._count = 0
        self._total: np.ndarray | None = None

    def take(self, client: Client, _: object, message: MQTTMessage) -> None:
        delta = np.load(io.BytesIO(message.payload))["delta"]
        self._total = delta if self._total is None else self._total + delta
        self._count += 1
        if self._count % self._every == 0:
            model = io.BytesIO()
            np.savez(model, parameters=self._total / self._count)
            client.publish(MODEL, model.getvalue(), qos=1, retain=True)


def packed(delta: np.ndarray) -> bytes:
    """Return ``delta`` as the script wants it."""
    file = io.BytesIO()
    np.savez(file, delta=delta)
    return file.getvalue()


def feed(
    host: str,
    port: int,
    payloads: Sequence[bytes],
    *,
    devices: int,
    count: int,
    every: int,
    patience_s: float,
) -> tuple[int, float]:
    """Send ``count`` updates; return how many models came back, and the seconds to the last.

    Raises:
        TransientError: a model for every ``every`` updates did not come within ``patience_s``.
    """
    client = _connected(host, port, "plain-load")
    models: list[float] = []
    client.on_message = lambda *_: models.append(time.monotonic())
    client.subscribe(MODEL, qos=1)
    client.loop_start()
    try:
        began = time.monotonic()
        sent: deque[MQTTMessageInfo] = deque()
        for number in range(count):
            topic = f"{UPDATES}/device-{number % devices}"
            sent.append(client.publish(topic, payloads[number % len(payloads)], qos=1))
            if len(sent) == AHEAD:
                sent.popleft().wait_for_publish(patience_s)
        while len(models) < count // every:
            if time.monotonic() > began + patience_s:
                raise TransientError(f"only {len(models)} models within {patience_s:.0f} s")
            time.sleep(0.01)
    finally:
        client.disconnect()
        client.loop_stop()
    return len(models), models[-1] - began


def _connected(host: str, port: int, client_id: str) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    client.connect(host, port)
    return client


def main(host: str, port: str, every: str) -> None:
    """Aggregate until we are killed."""
    client = _connected(host, int(port), "plain-aggregator")
    client.on_subscribe = lambda *_: print(READY, flush=True)
    client.subscribe(UPDATES + "/#", qos=1)
    client.on_message = _Mean(int(every)).take
    client.loop_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
