"""What a broker says in its CONNACK that it takes of us, and what we cannot do without. Pure."""

from models.transport.disconnection import Client, Why, refused
from models.transport.link import HEADERS, MAX_PACKET, WINDOW, BrokerLimits

__all__ = ["LEAST_PACKET", "lacking", "limits"]

LEAST_PACKET = 1024 + HEADERS  # bytes; the smallest chunk that the protocol has


def limits(properties: object) -> BrokerLimits:
    """Return what a broker takes that accepted us with these ``properties`` of MQTT 5."""
    return BrokerLimits(
        window=min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)),
        max_packet=min(MAX_PACKET, getattr(properties, "MaximumPacketSize", MAX_PACKET)),
    )


def lacking(properties: object, client: Client) -> Why | None:
    """Return what this broker does not have and a fleet cannot be without; None: nothing.

    It would else take every release and keep none, or drop the connection over each.
    """
    if getattr(properties, "RetainAvailable", 1) == 0:
        return refused(0x9A, "Retain not supported", client)
    most = limits(properties).max_packet
    if most < LEAST_PACKET:
        return Why(
            f"the broker takes packets of at most {most} bytes, and a fleet needs {LEAST_PACKET} "
            f"at least: set its limit (in Mosquitto max_packet_size) to {MAX_PACKET}",
            needs_help=True,
        )
    if getattr(properties, "MaximumQoS", 1) == 0:
        return refused(0x9B, "QoS not supported", client)
    return None
