"""Who a broker lets in, and who else calls itself by our name."""

import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_broker import CONNACK_5, FakeBroker, until_closed
from link_worlds import connected, disconnected, poll_until, published

from models.access.tls_files import TlsFiles
from models.transport import mqtt
from models.transport.link import Connected, Disconnected, Event
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker


@pytest.mark.slow
def test_wrong_credentials_are_reported_and_not_tried_again_at_once(
    embedded_broker: LocalBroker, closing: list[MqttLink], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    link = MqttLink(
        embedded_broker.host,
        embedded_broker.port,
        client_id="intruder",
        will=None,
        username="edgefold",
        password="not-the-password",
    )
    closing.append(link)
    link.start()
    (event,) = disconnected(poll_until(link, disconnected))
    assert event.reason.startswith("the broker refuses our user name or password")
    assert event.needs_help
    assert link.poll(2.0) == []
    assert "not-the-password" not in caplog.text


@pytest.mark.slow
def test_a_subscription_that_was_refused_once_is_asked_for_again(
    closing: list[MqttLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a broker over its quota (0x97): without it no receipt would ever come."""
    monkeypatch.setattr(mqtt, "ASK_AGAIN_S", 0.5)
    asked = []

    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5)
        while packet := connection.recv(4096):
            if packet[0] >> 4 == 8:  # SUBSCRIBE
                asked.append(packet)
                code = b"\x97" if len(asked) == 1 else b"\x01"
                connection.sendall(b"\x90\x04" + packet[2:4] + b"\x00" + code)

    with FakeBroker(answer) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None, protocol="5")
        closing.append(link)
        link.start()
        poll_until(link, connected)
        link.subscribe(["receipts"])
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and len(asked) < 2:
            link.poll(0.1)
        link.poll(1.0)  # once more than it would wait to ask again
        assert len(asked) == 2
        assert b"receipts" in asked[1]


@pytest.mark.slow
def test_a_broker_that_closes_over_a_publication_is_not_sent_it_twice_a_second(
    closing: list[MqttLink],
) -> None:
    times = []

    def answer(connection: socket.socket, level: int) -> None:
        times.append(time.monotonic())
        connection.sendall(CONNACK_5)
        connection.recv(4096)

    with FakeBroker(answer) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None, protocol="5", seed=3)
        closing.append(link)
        link.start()
        poll_until(link, connected)
        link.publish("a", bytes(64_000))
        link.poll(0.1)
        deadline = time.monotonic() + 12
        while time.monotonic() < deadline:
            link.poll(0.5)
    assert len(times) < 12  # 24 when each was tried again within a second


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[LocalBroker]:
    """A mosquitto with a password, which lets nobody write to forbidden/#."""
    pytest.importorskip("paho")
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "device", "right"], check=True)
    (tmp_path / "acl").write_text("topic readwrite open/#\nuser device\ntopic readwrite open/#\n")
    settings = [
        "allow_anonymous false",
        f"password_file {passwords}",
        f"acl_file {tmp_path / 'acl'}",
    ]
    with LocalBroker("mosquitto", directory=tmp_path, settings=settings) as broker:
        yield broker


@pytest.mark.slow
def test_mosquitto_refuses_credentials_and_topics_and_we_hear_of_both(
    guarded: LocalBroker, closing: list[MqttLink], caplog: pytest.LogCaptureFixture
) -> None:
    def link(password: str) -> MqttLink:
        made = MqttLink(
            guarded.host,
            guarded.port,
            client_id=f"device-{password}",
            will=None,
            username="device",
            password=password,
        )
        closing.append(made)
        made.start()
        return made

    (event,) = disconnected(poll_until(link("wrong"), disconnected))
    assert event.reason.endswith("(Not authorized)")
    assert event.needs_help
    device = link("right")
    poll_until(device, connected)
    device.publish("open/a", b"x")
    device.publish("forbidden/a", b"x")
    events = published(poll_until(device, lambda events: len(published(events)) == 2))
    assert sorted(event.refused for event in events) == ["", "Not authorized"]
    assert "topic=forbidden/a" in caplog.text


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with an authority (ca), a broker (127.0.0.1) and a device, each .crt and .key."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("broker", "device"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", "csr", "-subj", f"/CN={name}")
        signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
        openssl("x509", "-req", "-in", "csr", *signing, "-out", f"{name}.crt", "-days", "2")
    return tmp_path


@pytest.mark.slow
def test_certificates_are_asked_for_and_checked_on_both_sides(
    certificates: Path, closing: list[MqttLink]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = [
        f"listener {port} 127.0.0.1",
        f"cafile {certificates / 'ca.crt'}",
        f"certfile {certificates / 'broker.crt'}",
        f"keyfile {certificates / 'broker.key'}",
        "require_certificate true",
    ]
    ca, cert, key = (certificates / name for name in ("ca.crt", "device.crt", "device.key"))

    def first_event(tls: TlsFiles) -> Event:
        link = MqttLink("127.0.0.1", port, client_id="device", will=None, tls=tls, protocol="5")
        closing.append(link)
        link.start()
        return poll_until(link, lambda events: events)[0]

    with LocalBroker("mosquitto", directory=certificates, settings=settings):
        assert first_event(TlsFiles(ca, cert, key)) == Connected(session_present=False)
        stranger = first_event(TlsFiles(None, cert, key))
        assert isinstance(stranger, Disconnected)
        assert "certificate verify failed" in stranger.reason
        assert isinstance(first_event(TlsFiles(ca)), Disconnected)


@pytest.mark.slow
def test_a_second_client_of_our_name_is_told_where_the_broker_tells(
    closing: list[MqttLink],
) -> None:
    """mosquitto 2.0.11 does not: it just hangs up."""

    def answer(connection: socket.socket, level: int) -> None:
        connection.sendall(CONNACK_5 + b"\xe0\x02\x8e\x00")  # DISCONNECT: session taken over
        until_closed(connection)

    with FakeBroker(answer) as broker:
        link = MqttLink(broker.host, broker.port, client_id="a", will=None, protocol="5", seed=1)
        closing.append(link)
        link.start()
        (event, *_) = disconnected(poll_until(link, disconnected))
        assert event.reason.startswith("another client connects as a: ")
        assert event.is_taken_over


@pytest.mark.slow
def test_twins_do_not_wage_a_war_of_connections(
    mosquitto: LocalBroker, closing: list[MqttLink]
) -> None:
    links = [
        MqttLink(mosquitto.host, mosquitto.port, client_id="twin", will=None, seed=seed)
        for seed in range(2)
    ]
    closing += links
    for link in links:
        link.start()
        poll_until(link, connected)
    events: list[Event] = []
    for _ in range(20):
        events += links[0].poll(0.1)
        events += links[1].poll(0.0)
    assert 1 <= len(disconnected(events)) <= 10
