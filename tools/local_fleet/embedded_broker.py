"""The process behind `LocalBroker("embedded")`: amqtt, a broker in pure Python. Not for a fleet.

MQTT 3.1.1, QoS 1, everything in memory. Four of its faults are mended below, since our clients
could not. They must live with the others: messages queued for an absent client arrive with the
retain flag set, there is no size limit, and a second client of the same name does not end the
first one.
"""

import asyncio
import hmac
import os
import signal
import sys

import amqtt.broker
from amqtt.adapters import ReaderAdapter
from amqtt.broker import Broker
from amqtt.contexts import BaseContext
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.constants import QOS_0
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import OUTGOING, ApplicationMessage, Session

from tools.local_fleet.local_broker import PASSWORD_VARIABLE

__all__ = ["FaithfulHandler", "OnePassword", "PatientPayload", "QuietBroker"]


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


class FaithfulHandler(BrokerProtocolHandler):  # type: ignore[misc]
    """Repeats what was not acknowledged when the client is back; amqtt forgets it."""

    async def _handle_qos1_message_flow(self, app_message: ApplicationMessage) -> None:
        try:
            await super()._handle_qos1_message_flow(app_message)
        finally:
            if app_message.direction == OUTGOING and app_message.puback_packet is None:
                self.session.inflight_out[app_message.packet_id] = app_message


class QuietBroker(Broker):  # type: ignore[misc]
    """Sends retained messages to who subscribes, and only then; and knows who is there.

    amqtt sends whoever connects all that match anyone's subscription, with QoS 0. It notices late
    that a client was killed which owed it acknowledgements: when the same client is back already.
    Then it takes the new connection for the one that ended, and sends it nothing any more.
    """

    async def _handle_disconnect(
        self,
        client_session: Session,
        handler: BrokerProtocolHandler,
        disconnect_waiter: "asyncio.Future[object]",
    ) -> None:
        if self._get_handler(client_session) is not handler:
            await self._stop_handler(handler)
            return
        await super()._handle_disconnect(client_session, handler, disconnect_waiter)
        if self._get_handler(client_session) is not handler:  # it came back meanwhile
            client_session.transitions.connect()

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        if subscription[1] != QOS_0:  # ours subscribe with QoS 1
            await super()._publish_retained_messages_for_subscription(subscription, session)


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
    amqtt.broker.BrokerProtocolHandler = FaithfulHandler
    broker = QuietBroker(
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
