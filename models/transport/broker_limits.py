"""What a broker says in its CONNACK that it takes of us, and what we cannot do without. Pure."""

from models.transport.disconnection import Client, Why, refused
from models.transport.link import MAX_PACKET, WINDOW, Limits

__all__ = ["lacking", "limits"]


def limits(properties: object) -> Limits:
    """Return what a broker takes that accepted us with these ``properties`` of MQTT 5."""
    return Limits(
        window=min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)),
        max_packet=min(MAX_PACKET, getattr(properties, "MaximumPacketSize", MAX_PACKET)),
    )


def lacking(properties: object, client: Client) -> Why | None:
    """Return what this broker does not have and a fleet cannot be without; None: nothing.

    It would else take every release and keep none, or drop the connection over each.
    """
    if getattr(properties, "RetainAvailable", 1) == 0:
        return refused(0x9A, "Retain not supported", client)
    if getattr(properties, "MaximumQoS", 1) == 0:
        return refused(0x9B, "QoS not supported", client)
    return None
