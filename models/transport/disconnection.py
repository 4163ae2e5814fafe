"""Why a connection to a broker ended, or never began: one sentence that names the remedy. Pure.

Sentences hold no numbers that change, so that the same trouble is the same sentence each time: who
says it once has said it. (Where a wrong clock may be the trouble, its date stands, but no time.)
Settings are named as both agent.toml and broker.toml have them.
"""

import errno
import socket
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = [
    "TAKEN_OVER",
    "Client",
    "Why",
    "closed",
    "failed",
    "refused",
    "silent",
    "stuck",
    "unreachable",
]

TAKEN_OVER = 0x8E  # reason code of MQTT 5
TLS_ALERT = 0x15  # first byte of a TLS record in which a TLS server refuses what is no TLS
_SECOND = "was an SD card cloned, or does a second one run?"


class Client(NamedTuple):
    """What a sentence needs to know of us."""

    host: str
    port: int
    client_id: str
    has_tls: bool
    has_password: bool
    clock_s: float = 0.0  # ours, since 1970
    sent_to: str = ""  # which other broker this one names

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def today(self) -> str:
        return time.strftime("%Y-%m-%d", time.gmtime(self.clock_s))


class Why(NamedTuple):
    """One reason."""

    text: str
    needs_help: bool = False  # no further attempt mends it, only a person
    is_taken_over: bool = False  # another client came with our name


# Answers to CONNECT (MQTT 5, section 3.2.2.2); paho gives those of 3.1.1 the same numbers.


def refused(code: int, words: str, client: Client) -> Why:
    """Return why the broker's CONNACK said no; ``words`` are its own for ``code``."""
    sentence, needs_help = _REFUSALS.get(code, (_refused_otherwise, False))
    return Why(f"{sentence(client)} ({words})", needs_help)


def _credentials(client: Client) -> str:
    if not client.has_password and client.has_tls:
        return (
            "the broker does not let us in: set fleet.username and a password, or another "
            f"certificate (the client id is {client.client_id})"
        )
    if not client.has_password:
        return (
            "the broker lets nobody in without a password: set fleet.username and a password, or "
            f"allow the client id {client.client_id} there"
        )
    return (
        "the broker refuses our user name or password: correct them here, or on the broker "
        f"(the client id is {client.client_id})"
    )


def _client_id(client: Client) -> str:
    return f"the broker refuses the client id {client.client_id}: allow it there, or take another"


def _banned(client: Client) -> str:
    return f"the broker has banned {client.client_id}: only its administrator can lift that"


def _unavailable(client: Client) -> str:
    return f"the broker on {client.place} is not available now: look at its log"


def _busy(client: Client) -> str:
    return f"the broker on {client.place} has too much to do: raise its limits if it stays so"


def _elsewhere(client: Client) -> str:
    where = f" ({client.sent_to})" if client.sent_to else ""
    return f"the broker on {client.place} sends us to another one{where}: correct fleet.broker"


def _no_five(client: Client) -> str:
    return (
        f"the broker on {client.place} does not speak this version of MQTT: set fleet.protocol to "
        '"auto"'
    )


def _no_retained_messages(client: Client) -> str:
    return (
        "the broker keeps no retained messages, and a fleet needs them for its releases and "
        f"states: allow them to {client.client_id} there (in Mosquitto retain_available true), or "
        "take another broker"
    )


def _no_qos_1(client: Client) -> str:
    return (
        "the broker takes messages of QoS 0 only, and a fleet needs QoS 1: allow that to "
        f"{client.client_id} there (in Mosquitto max_qos 1 or 2)"
    )


def _no_will(client: Client) -> str:
    return (
        f"the broker does not take the will of {client.client_id}, a message on a topic of its own "
        "that says when it is gone: allow it to write there"
    )


def _limits(client: Client) -> str:
    return f"the broker's limits do not let {client.client_id} in: raise them there"


def _refused_otherwise(client: Client) -> str:
    return f"the broker on {client.place} refuses us: look at its log"


_REFUSALS: dict[int, tuple[Callable[[Client], str], bool]] = {
    0x84: (_no_five, True),
    0x85: (_client_id, True),
    0x86: (_credentials, True),
    0x87: (_credentials, True),
    0x88: (_unavailable, False),
    0x89: (_busy, False),
    0x8A: (_banned, True),
    0x8C: (_credentials, True),
    0x90: (_no_will, True),
    0x95: (_limits, False),
    0x97: (_limits, False),
    0x99: (_no_will, True),
    0x9A: (_no_retained_messages, True),
    0x9B: (_no_qos_1, True),
    0x9C: (_elsewhere, True),
    0x9D: (_elsewhere, True),
    0x9F: (_busy, False),
}


# The end of a connection that stood (MQTT 5, section 3.14.2.1).


def closed(code: int, words: str, client: Client) -> Why:
    """Return why the broker sent DISCONNECT."""
    if code == TAKEN_OVER:
        return Why(
            f"another client connects as {client.client_id}: {_SECOND} give every one its own id, "
            f"and its own user name where the broker takes that for the id ({words})",
            is_taken_over=True,
        )
    remedy = _ENDINGS.get(code, "look at its log")
    if code in (0x9C, 0x9D) and client.sent_to:
        remedy = f"it sends us to {client.sent_to}; write that in fleet.broker"
    return Why(f"the broker closed the connection: {remedy} ({words})")


_ENDINGS = {
    0x87: "its rules forbid us something; look at its ACL and its log",
    0x89: "it has too much to do",
    0x8B: "it shuts down",
    0x8D: "it heard nothing from us for too long; is the line bad?",
    0x93: "we sent it more at once than it takes; look at its limits",
    0x95: "we sent it more in one packet than it takes; raise its max_packet_size",
    0x96: "we sent it more than it takes; raise its limits",
    0x97: "its limits are reached; raise them",
    0x99: "it takes text only in our messages, and they are none; allow other payloads",
    0x9A: "it keeps no retained messages, which a fleet needs; allow them there",
    0x9B: "it takes QoS 0 only, and a fleet needs QoS 1; allow that there",
    0xA0: "it lets nobody stay longer; raise its limit",
    0xA2: "it allows no subscriptions with + in them, which the server needs; allow them there",
    0x90: "it does not allow us such topics; look at its ACL",
    0x98: "its administrator did, or our password or rules were changed",
    0x9C: "it sends us to another one; correct fleet.broker",
    0x9D: "it sends us to another one; correct fleet.broker",
    0x9F: "it has too much to do",
}


def failed(client: Client, *, was_closed: bool, was_silent: bool) -> Why:
    """Return why a connection that stood is gone without a word of the broker.

    ``was_closed``: the other end closed it in good order; ``was_silent``: it answered no ping.
    """
    if was_silent:
        return Why(f"the line to {client.place} is dead: our pings were not answered")
    if was_closed:
        return Why(
            "the broker closed the connection without a reason: if that goes on, another client "
            f"connects as {client.client_id} ({_SECOND} or does the broker take the user name for "
            "the client id, and two have one?), or its rules forbid us something"
        )
    return Why(f"the connection to {client.place} broke off")


def stuck(reason: str, topic: str, size: int) -> Why:
    """Return ``reason``, seen several times while the broker had the same message to take.

    A broker of MQTT 3.1.1 has no other way to say that it is too large for it.
    """
    return Why(
        f"{reason}; each time when it has to take {size} bytes on {topic}: if that is more than it "
        "allows, raise its limit of a message's size (in Mosquitto max_packet_size)"
    )


# Connections that never stood.


def silent(
    error: Exception | None, client: Client, *, first_byte: int | None, is_open: bool
) -> Why:
    """Return why there was no answer to CONNECT.

    ``error`` is what the socket said, ``first_byte`` the first one that came, if any; ``is_open``:
    nobody closed the connection.
    """
    if isinstance(error, ssl.SSLError):
        return _tls(error, client)
    if first_byte == TLS_ALERT and not client.has_tls:
        return Why(
            f"{client.place} speaks TLS: write mqtts:// in fleet.broker, or the port of a listener "
            "without TLS",
            needs_help=True,
        )
    if is_open:
        return Why(
            f"{client.place} takes the connection and does not answer: is it an MQTT broker, and "
            "not overloaded?"
        )
    tls = "" if client.has_tls else ", it wants TLS (mqtts://)"
    return Why(
        f"{client.place} closes the connection without an answer: it refuses our user name or "
        f"password{tls}, it keeps no retained messages or takes QoS 0 only, it has as many "
        f"connections as it allows, another client is connected as {client.client_id}, or it is no "
        "MQTT broker"
    )


def unreachable(error: Exception, client: Client) -> Why:
    """Return why neither TCP nor TLS came to stand."""
    match error:
        case ssl.SSLError():
            return _tls(error, client)
        case socket.gaierror() | UnicodeError():
            return Why(
                f"the name {client.host} is not found: correct fleet.broker, or look at the "
                "board's network and its name service (DNS)"
            )
        case ConnectionRefusedError():
            return Why(
                f"nothing listens on {client.place}: start the broker, or correct fleet.broker "
                "(brokers often listen on localhost only)"
            )
        case ConnectionResetError() | BrokenPipeError() if client.has_tls:
            return _no_tls(client)
        case OSError(errno=errno.ENETUNREACH | errno.ENETDOWN):
            return Why(f"no network: there is no way to {client.place} from this board")
        case OSError():
            return Why(
                f"{client.place} cannot be reached: is its machine up, is fleet.broker right, and "
                "does no firewall forbid it?"
            )
    return Why(f"{client.place} cannot be reached: {type(error).__name__}")


# OpenSSL's X509_V_ERR_...
_NOT_YET_VALID, _EXPIRED, _NAME_MISMATCH, _ADDRESS_MISMATCH = 9, 10, 62, 64
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}


def _tls(error: ssl.SSLError, client: Client) -> Why:
    if isinstance(error, ssl.SSLCertVerificationError):
        words = f"certificate verify failed: {error.verify_message}".rstrip(": ")
        match error.verify_code:
            case code if code == _NOT_YET_VALID:
                remedy = (
                    f"is not valid yet by the clock here, which says {client.today}: set it, or if "
                    "it is right, give the broker another"
                )
            case code if code == _EXPIRED:
                remedy = (
                    f"has expired by the clock here, which says {client.today}: set it, or if it "
                    "is right, renew the broker's or its authority's"
                )
            case code if code in (_NAME_MISMATCH, _ADDRESS_MISMATCH):
                remedy = f"is made for another name than {client.host}: write that in fleet.broker"
            case code if code in _UNKNOWN_AUTHORITY:
                remedy = (
                    "is of no authority that we trust: name the PEM file of the one that signed it "
                    "in fleet.ca"
                )
            case _:
                remedy = "is not one to trust: make the broker a new one"
        return Why(f"the broker's certificate {remedy} ({words})", needs_help=True)
    words = (error.reason or "").replace("_", " ").lower()
    if "alert" in words:
        return Why(
            "the broker refuses our TLS: does it want a certificate of ours (fleet.certificate and "
            f"fleet.key)? ({words})",
            needs_help=True,
        )
    if isinstance(error, ssl.SSLEOFError) or "wrong version number" in words or "record" in words:
        return _no_tls(client)
    return Why(f"TLS with {client.place} fails: {words or type(error).__name__}")


def _no_tls(client: Client) -> Why:
    return Why(
        f"{client.place} does not answer in TLS: write mqtt:// in fleet.broker, or the port of the "
        "broker's TLS listener (often 8883)"
    )
