"""Credentials that change under a link that runs: over a real Mosquitto that asks for them."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from link_worlds import connected, disconnected, poll_until, published, received

from models.access.credentials import CredentialSource, Login
from models.access.tls_files import TlsFiles
from models.transport import network_thread, reconnection
from models.transport.link import WINDOW, Connected, Disconnected, Event
from models.transport.mqtt import MqttLink
from tools.local_fleet.local_broker import LocalBroker, find_mosquitto

pytestmark = pytest.mark.slow


class Guarded(LocalBroker):
    """A Mosquitto with one account, whose password changes while it runs."""

    def __init__(self, directory: Path) -> None:
        self.passwords = directory / "passwords"
        self.write("first", create=True)
        settings = ["allow_anonymous false", f"password_file {self.passwords}"]
        super().__init__("mosquitto", directory=directory, persistence=True, settings=settings)

    def write(self, password: str, *, create: bool = False) -> None:
        options = ["-b", "-c"] if create else ["-b"]
        command = ["mosquitto_passwd", *options, str(self.passwords), "board", password]
        subprocess.run(command, check=True, capture_output=True)

    def change(self, password: str) -> None:
        self.write(password)
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with Guarded(tmp_path) as broker:
        yield broker


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is refused tries again soon, for the sake of these tests."""
    monkeypatch.setattr(reconnection, "REFUSED_DELAY_S", (0.2, 0.4))
    monkeypatch.setattr(network_thread, "READ_CREDENTIALS_AGAIN_S", 0.2)


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "board.password"
    path.write_text("first\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def link(guarded: Guarded, password_file: Path, closing: list[MqttLink]) -> MqttLink:
    made = MqttLink(
        guarded.host,
        guarded.port,
        client_id="board",
        will=None,
        login=Login("board", password_file=password_file),
    )
    closing.append(made)
    return made


def is_refused(events: list[Event]) -> bool:
    return any("Not authorized" in event.reason for event in disconnected(events))


def wait_for(claim: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not claim():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_password_that_the_broker_changed_first_is_found_without_a_signal(
    guarded: Guarded, link: MqttLink, password_file: Path, quick: None
) -> None:
    link.start()
    poll_until(link, connected)
    guarded.write("second")
    guarded.kill()
    link.publish("news", b"written while nobody listened")
    guarded.start()
    poll_until(link, is_refused)
    password_file.write_text("second\n")
    events = poll_until(link, lambda events: connected(events) and published(events))
    assert published(events)[0].refused == ""


def test_a_password_that_the_device_has_first_is_taken_when_the_broker_has_it(
    guarded: Guarded, link: MqttLink, password_file: Path, quick: None
) -> None:
    link.start()
    poll_until(link, connected)
    link.subscribe(["news"])
    password_file.write_text("second\n")
    link.credentials.replace(Login("board", password_file=password_file))
    poll_until(link, is_refused)
    guarded.change("second")
    poll_until(link, connected)
    link.publish("news", b"hello")
    assert poll_until(link, received)


def test_new_credentials_keep_the_session_and_what_is_under_way(
    guarded: Guarded, link: MqttLink, password_file: Path
) -> None:
    link.start()
    poll_until(link, connected)
    link.subscribe(["news"])
    link.publish("news", b"the broker has the subscription")
    (hello,) = received(poll_until(link, received))
    link.acknowledge(hello)
    poll_until(link, lambda _: link.window() == WINDOW)
    guarded.write("second")
    password_file.write_text("second\n")
    assert guarded.process is not None
    guarded.process.send_signal(signal.SIGHUP)
    for number in range(WINDOW):
        link.publish("news", b"%d" % number)
    link.credentials.replace(Login("board", password_file=password_file))
    events: list[Event] = []

    def have_all_come(new: list[Event]) -> bool:
        """What is not acknowledged fills the window with repetitions, and the rest never comes."""
        for event in received(new)[len(received(events)) :]:
            link.acknowledge(event)
        events[:] = new
        payloads = {event.payload for event in received(new)}
        return len(payloads) == WINDOW == len(published(new)) and bool(connected(new))

    poll_until(link, have_all_come)
    assert Connected(session_present=True) in events


def test_links_that_share_credentials_log_in_anew_together_and_a_closed_one_never(
    guarded: Guarded, password_file: Path, closing: list[MqttLink]
) -> None:
    """A server has two links, one of which looks for other servers."""
    source = CredentialSource(Login("board", "first"))
    links = [
        MqttLink(guarded.host, guarded.port, client_id=name, will=None, login=source)
        for name in ("one", "two", "closed")
    ]
    closing += links
    for link in links:
        link.start()
        poll_until(link, connected)
    links.pop().close()
    guarded.change("second")
    password_file.write_text("second\n")
    source.replace(Login("board", password_file=password_file))
    for link in links:
        poll_until(link, connected)
    assert len(source.watchers) == 2


def test_the_same_credentials_are_no_reason_to_connect_anew(
    link: MqttLink, password_file: Path
) -> None:
    link.start()
    poll_until(link, connected)
    for _ in range(100):
        password_file.write_text("first\n")
        link.credentials.replace(Login("board", password_file=password_file))
    assert disconnected(link.poll(2.0)) == []
    assert link.window() > 0


def test_files_that_are_wrong_do_not_end_a_connection(link: MqttLink, password_file: Path) -> None:
    link.start()
    poll_until(link, connected)
    password_file.unlink()
    link.credentials.replace(Login("board", password_file=password_file))
    assert disconnected(link.poll(2.0)) == []
    assert "No such file or directory; what was read before stays" in link.credentials.problem


def test_without_any_credentials_the_link_says_so_and_waits_for_them(
    link: MqttLink, password_file: Path, quick: None
) -> None:
    password_file.unlink()
    link.start()
    (event,) = disconnected(poll_until(link, disconnected))
    assert (
        event.reason == f"cannot log in: password_file {password_file}: No such file or directory"
    )
    assert link.poll(1.0) == []  # once, not every time
    password_file.write_text("first\n")
    poll_until(link, connected)


def test_a_link_that_waits_for_credentials_is_closed_at_once(
    link: MqttLink, password_file: Path
) -> None:
    password_file.unlink()
    link.start()
    poll_until(link, disconnected)
    (network,) = [t for t in threading.enumerate() if t.name == "MQTT as board"]
    link.close()
    assert not network.is_alive()


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """Signs certificates of 127.0.0.1, of any age."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.ca = directory / "ca.crt"
        (directory / "index").touch()
        (directory / "serial").write_text("01\n")
        (directory / "ca.conf").write_text(
            "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nserial=serial\nnew_certs_dir=.\n"
            "default_md=sha256\npolicy=any\nunique_subject=no\nx509_extensions=ext\n"
            "[any]\ncommonName=supplied\n[ext]\nsubjectAltName=IP:127.0.0.1\n"
        )
        subject = ["-subj", "/CN=authority", "-days", "3650"]
        openssl(directory, "req", "-x509", *CURVE, "-keyout", "ca.key", "-out", "ca.crt", *subject)

    def sign(self, name: str, *, start: str, end: str) -> tuple[Path, Path]:
        request = ["-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"]
        openssl(self.directory, "req", *CURVE, *request)
        dates = ["-startdate", start, "-enddate", end]
        files = ["-in", f"{name}.csr", "-out", f"{name}.crt", "-cert", "ca.crt"]
        openssl(
            self.directory,
            *("ca", "-batch", "-config", "ca.conf", "-keyfile", "ca.key", *files, *dates),
        )
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"


LONG_AGO, RECENTLY, SOON, FAR = (
    "20200101000000Z",
    "20210101000000Z",
    "20400101000000Z",
    "20450101000000Z",
)


def tls_settings(authority: Authority, files: tuple[Path, Path]) -> tuple[int, list[str]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    certificate, key = files
    return port, [
        f"listener {port} 127.0.0.1",
        f"cafile {authority.ca}",
        f"certfile {certificate}",
        f"keyfile {key}",
    ]


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (LONG_AGO, RECENTLY, "certificate has expired by the clock here, which says "),
        (SOON, FAR, "certificate is not valid yet by the clock here, which says "),
    ],
)
def test_a_certificate_out_of_its_time_is_said_with_the_clock(
    tmp_path: Path, closing: list[MqttLink], start: str, end: str, said: str
) -> None:
    """To the board an expired certificate and a clock that is wrong by years look alike."""
    authority = Authority(tmp_path / "authority")
    port, settings = tls_settings(authority, authority.sign("broker", start=start, end=end))
    with LocalBroker("mosquitto", directory=tmp_path, settings=settings):
        link = MqttLink(
            "127.0.0.1", port, client_id="a", will=None, login=Login(tls=TlsFiles(authority.ca))
        )
        closing.append(link)
        link.start()
        (event,) = disconnected(poll_until(link, disconnected))
    assert said in event.reason
    assert time.strftime("which says %Y-%m-", time.gmtime()) in event.reason
    assert "set it, or if it is right, " in event.reason
    assert event.needs_help


def test_an_authority_is_replaced_while_the_link_runs(
    tmp_path: Path, closing: list[MqttLink]
) -> None:
    """A new authority beside the old one, as one does it in the field; then the old one goes."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    trusted = tmp_path / "ca.crt"
    trusted.write_bytes(old.ca.read_bytes())
    port, settings = tls_settings(old, old.sign("broker", start=LONG_AGO, end=FAR))
    link = MqttLink("127.0.0.1", port, client_id="a", will=None, login=Login(tls=TlsFiles(trusted)))
    closing.append(link)
    with LocalBroker("mosquitto", directory=tmp_path / "one", settings=settings):
        link.start()
        poll_until(link, connected)
        trusted.write_bytes(old.ca.read_bytes() + new.ca.read_bytes())
        link.credentials.replace(Login(tls=TlsFiles(trusted)))
        poll_until(link, connected)
    certificate, key = new.sign("broker", start=LONG_AGO, end=FAR)
    settings = [*settings[:1], *tls_settings(new, (certificate, key))[1][1:]]
    with LocalBroker("mosquitto", directory=tmp_path / "two", settings=settings):
        poll_until(link, connected)


def test_the_reason_of_a_refusal_is_never_the_password(
    guarded: Guarded, closing: list[MqttLink], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    link = MqttLink(
        guarded.host,
        guarded.port,
        client_id="board",
        will=None,
        login=Login("board", "tulips-in-may"),
    )
    closing.append(link)
    link.start()
    (event,) = disconnected(poll_until(link, disconnected))
    assert isinstance(event, Disconnected)
    assert "tulips" not in f"{event} {caplog.text} {vars(link)}"
