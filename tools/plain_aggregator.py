"""What one writes in an afternoon: an MQTT subscriber that averages whole float32 deltas.

The yardstick of ``edgefold bench server``. It keeps everything in memory: what it has acknowledged
is gone when it ends, nothing is checked, and an update that comes twice counts twice.
``python -m tools.plain_aggregator HOST PORT UPDATES`` publishes the mean of every so many.
"""

import io
import sys

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

__all__ = ["MODEL", "READY", "UPDATES", "connected"]

UPDATES = "plain/update"  # topic below which devices publish
MODEL = "plain/model"
READY = "subscribed"  # on stdout


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


def connected(host: str, port: int, client_id: str) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    client.connect(host, port)
    return client


def main(host: str, port: str, every: str) -> None:
    """Aggregate until we are killed."""
    client = connected(host, int(port), "plain-aggregator")
    client.on_subscribe = lambda *_: print(READY, flush=True)
    client.subscribe(UPDATES + "/#", qos=1)
    client.on_message = _Mean(int(every)).take
    client.loop_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
