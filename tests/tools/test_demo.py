"""The parts of the demo that need no fleet: what it counts, writes, shows and demands."""

import io
import json
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from tools.cli import main
from tools.demo_fleet import Access, Device, Process, stop_all, to_toml
from tools.demo_report import draw, make_report, verdict, write_report
from tools.demo_view import DeviceView, FleetView, ReleaseView, View, kilobytes
from tools.demo_watch import Account
from tools.tcp_relay import Relay

DEVICE = DeviceView("device-1", "waiting", 3, 40, 0.2, 0.9, 5, 4, 0, 1, 900, 2000)
FLEET = FleetView(
    (DEVICE,),
    (
        ReleaseView(1, 0.1, 0, 0, 0, 500),
        ReleaseView(2, 0.6, 2, 300, 6000, 400),
        ReleaseView(3, 0.9, 2, 300, 6000, 400),
    ),
)
WELL = Account(made=5, folded=4, refused=0, merged=0, waiting=1, lost=0, folded_twice=0)


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back, twice, what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def attend(stream: socket.socket) -> None:
            with stream:
                while data := stream.recv(4096):
                    stream.sendall(2 * data)

        def serve() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=attend, args=(stream,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def ask(relay: Relay, data: bytes) -> bytes:
    with socket.create_connection((relay.host, relay.port), timeout=5) as stream:
        stream.sendall(data)
        answer = b""
        while len(answer) < 2 * len(data):
            piece = stream.recv(4096)
            if not piece:
                break
            answer += piece
        return answer


def test_relay_passes_everything_on_and_counts_both_ways(echo: tuple[str, int]) -> None:
    with Relay(echo) as relay:
        assert ask(relay, b"x" * 10_000) == b"x" * 20_000
        assert (relay.bytes_up, relay.bytes_down) == (10_000, 20_000)


def test_a_cut_relay_breaks_and_refuses_connections_until_it_is_restored(
    echo: tuple[str, int],
) -> None:
    with Relay(echo) as relay:
        port = relay.port
        with socket.create_connection((relay.host, port), timeout=5) as stream:
            stream.sendall(b"a")
            assert stream.recv(2)
            relay.cut()
            assert stream.recv(1) == b""
        with pytest.raises(OSError, match="refused"):
            ask(relay, b"b")
        relay.restore()
        assert relay.port == port
        assert ask(relay, b"c") == b"cc"


def test_configurations_are_read_back_as_they_were_written() -> None:
    values = {
        "fleet": {"name": "demo", "broker": 'mqtt://h:1/"quoted"\\', "on": True},
        "task": [{"bundle": "/a", "aggregation": {"updates": 4, "seconds": 3.0}}, {"bundle": "b"}],
    }
    assert tomllib.loads(to_toml(values)) == values


def test_a_device_gets_every_sample_once(tmp_path: Path) -> None:
    x, y = np.arange(50, dtype=np.float32).reshape(25, 2), np.arange(25)
    device = Device(
        "device-1",
        tmp_path,
        Access("demo", "127.0.0.1", 1, None, None),
        "demo",
        (x, y),
        parts=7,
        first_share=0.4,
    )
    counts = []
    while count := device.deliver():
        counts.append(count)
    assert counts[0] == 10
    assert device.samples_delivered == 25
    files = sorted(device.inbox.iterdir())
    assert len(files) == len(counts) == 8
    arrived = np.concatenate([np.load(file)["y"] for file in files])
    np.testing.assert_array_equal(np.sort(arrived), y)


def test_the_report_has_the_promised_fields_and_sums(tmp_path: Path) -> None:
    device = Device(
        "device-1",
        tmp_path,
        Access("demo", "127.0.0.1", 1, None, None),
        "demo",
        (np.zeros((9, 2)), np.zeros(9)),
        parts=1,
    )
    report = make_report(
        FLEET, [device], WELL, broker="embedded", net="mlp", parameters=1000, wall_s=12.34
    )
    write_report(report, tmp_path / "deep" / "report.json")
    report = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert list(report) == [
        "broker",
        "net",
        "parameters",
        "wall_s",
        "releases",
        "devices",
        "bytes_up",
        "bytes_up_dense_float32",
        "updates_lost",
        "updates_folded_twice",
    ]
    assert list(report["releases"][0]) == ["number", "accuracy", "updates", "bytes_down"]
    assert list(report["devices"][0]) == [
        "id",
        "samples",
        "accuracy_first",
        "accuracy_last",
        "release",
        "updates_sent",
        "updates_folded",
        "bytes_up",
        "bytes_down",
        "peak_rss_mb_agent",
        "peak_rss_mb_trainer",
    ]
    assert report["bytes_up"] == 900
    assert report["bytes_up_dense_float32"] == 5 * 4 * 1000


@pytest.mark.parametrize(
    ("fleet", "account", "said"),
    [
        (FLEET, WELL, []),
        (FLEET._replace(releases=()), WELL, ["made no release"]),
        (FLEET._replace(devices=(DEVICE._replace(release=2),)), WELL, ["runs release 2"]),
        (FLEET._replace(releases=FLEET.releases[:1]), WELL, ["release 3", "not better"]),
        (FLEET, WELL._replace(lost=1), ["lost"]),
        (FLEET, WELL._replace(folded_twice=1), ["twice"]),
    ],
)
def test_the_demo_succeeds_only_if_its_promises_were_kept(
    fleet: FleetView, account: Account, said: list[str]
) -> None:
    complaints = verdict(fleet, account)
    assert len(complaints) == len(said)
    for complaint, words in zip(complaints, said, strict=True):
        assert words in complaint


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw(FLEET, tmp_path / "out" / "picture.png", title="mlp on digits")
    assert (tmp_path / "out" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_terminal_every_release_is_one_line() -> None:
    out = io.StringIO()
    view = View(Console(file=out, width=200))
    with view.running():
        view.show(FLEET._replace(releases=FLEET.releases[:1]))
        view.show(FLEET)
        view.show(FLEET)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "release 1: accuracy 10.0 %" in lines[0]
    assert "release 3: accuracy 90.0 % from 2 updates of 150 B" in lines[2]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB")]
)
def test_bytes_are_shown_in_units_of_a_thousand(count: int, text: str) -> None:
    assert kilobytes(count) == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "0"], "--devices 0: take 1 to 64"),
        (["--rounds", "-3"], "--rounds -3: take 1 to 1000"),
        (["--data", "/nowhere.npz"], "no data at /nowhere.npz"),
        (["--net", "gpt"], "there is no net 'gpt'"),
        (["--compression", "0"], "--compression 0: take 1 to 10000"),
        (["--broker", "kafka"], "take auto, mosquitto, embedded or mqtt://HOST:PORT"),
        (["--broker", "mqtt://127.0.0.1:1", "--devices", "1"], "127.0.0.1:1"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--quiet", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_no_process_of_a_fleet_outlives_the_demo(tmp_path: Path) -> None:
    """The demo is killed: its children end by themselves."""
    program = (
        "import sys, time; from pathlib import Path; from tools.demo_fleet import Process;"
        f"p = Process('sleeper', ['http.server', '0'], Path({str(tmp_path / 'log')!r}));"
        "p.start(); print(p.pid, flush=True); time.sleep(60)"
    )
    demo = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert demo.stdout is not None
    child = psutil.Process(int(demo.stdout.readline()))
    demo.kill()
    demo.wait()
    demo.stdout.close()
    child.wait(10)
    assert not child.is_running()


@pytest.mark.slow
def test_stopping_ends_all_processes_and_says_what_one_of_them_said_last(tmp_path: Path) -> None:
    good = Process("good", ["http.server", "0"], tmp_path / "good.log")
    bad = Process("bad", ["no_such_module"], tmp_path / "bad.log")
    good.start()
    bad.start()
    assert bad.wait() == 1
    assert "no_such_module" in bad.last_words()
    stop_all([good, bad])
    assert good.pid == bad.pid == 0
