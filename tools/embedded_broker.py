"""The process behind `LocalBroker("embedded")`: amqtt, a broker in pure Python. Not for a fleet.

MQTT 3.1.1, QoS 1, everything in memory. Measured quirks that a client must live with: messages
queued for an absent client arrive with the retain flag set, there is no size limit, and a second
client of the same name does not end the first one.
"""

import asyncio
import hmac
import os
import signal
import sys

from amqtt.adapters import ReaderAdapter
from amqtt.broker import Broker
from amqtt.contexts import BaseContext
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import Session

from tools.local_broker import PASSWORD_VARIABLE


class PatientPayload(ConnectPayload):  # type: ignore[misc]  # amqtt is not checked
    """Lets a CONNECT of MQTT 5 be refused.

    amqtt reads it by the rules of 3.1.1, waits for bytes that never come, and so never reaches
    its own answer "unacceptable protocol version".
    """

    @classmethod
    async def from_stream(
        cls,
        reader: ReaderAdapter,
        fixed: MQTTFixedHeader | None,
        variable_header: ConnectVariableHeader | None,
    ) -> "PatientPayload":
        if variable_header is not None and variable_header.proto_level != 4:
            return cls("refused", will_topic="", will_message=b"", username="", password="")
        payload: PatientPayload = await super().from_stream(reader, fixed, variable_header)
        return payload


class OnePassword(BaseAuthPlugin):  # type: ignore[misc]
    """Lets in whoever knows the password of this process.

    Without authentication amqtt throws persistent sessions away.
    """

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._password = os.environ[PASSWORD_VARIABLE]

    async def authenticate(self, *, session: Session) -> bool:
        return hmac.compare_digest(str(session.password or ""), self._password)


async def serve(host: str, port: int) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ConnectPacket.PAYLOAD = PatientPayload
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {f"{__name__}.{OnePassword.__name__}": {}},
        }
    )
    await broker.start()
    await stop.wait()
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
