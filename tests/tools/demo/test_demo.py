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
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from rich.console import Console

from broker.config import EvaluationPolicy, TaskConfig
from edge_agent.updates.outbox_facts import OutboxFacts
from models.errors import UsageError
from tools.cli import main
from tools.demo.demo_conclusion import conclude
from tools.demo.demo_dense import DenseRelease, DenseRun, averages_plainly
from tools.demo.demo_layout import Event, lay_out
from tools.demo.demo_picture import Course, TroubleMark, draw
from tools.demo.demo_plan import DemoPlan
from tools.demo.demo_report import Timeline, make_report, verdict, warnings, write_report
from tools.demo.demo_troubles import OffLine
from tools.demo.demo_view import View
from tools.demo.same_accuracy import same_accuracy
from tools.local_fleet.both_memories import BothMemories, OneMemory
from tools.local_fleet.fleet_facts import (
    DeviceView,
    FleetView,
    ReleaseView,
    counted,
    kilobytes,
    listed,
)
from tools.local_fleet.fleet_processes import Access, Device
from tools.local_fleet.fleet_watch import Account, Probe
from tools.local_fleet.process import Process, stop_all
from tools.local_fleet.tcp_relay import Relay
from tools.local_fleet.toml_text import to_toml

DEVICE = DeviceView("device-1", "waiting", 3, 40, 0.2, 0.9, 5, 4, 0, 1, 900, 2000)
FLEET = FleetView(
    (DEVICE,),
    (
        ReleaseView(1, 0.1, 0, 0, 0, 500),
        ReleaseView(2, 0.6, 2, 300, 6000, 400),
        ReleaseView(3, 0.9, 2, 300, 6000, 400),
    ),
)
DENSE = DenseRun(
    (DenseRelease(1, 0.1, 0), DenseRelease(2, 0.7, 6000), DenseRelease(3, 0.92, 6000)), True, 1.0
)
TIMELINE = Timeline(
    1000.0,
    (Probe("device-1", 1002.0, 1, 0.2), Probe("device-1", 1005.0, 3, 0.9)),
    (TroubleMark("device-1", "line cut", 1003.0, 1004.0),),
)
WELL = Account(made=5, folded=4, refused=0, merged=0, waiting=1, lost=0, folded_twice=0)
AGREED = BothMemories((OneMemory("device-1", True, True, 1.5, 1.5),), (), 0.0, ())
PLAN = DemoPlan(
    data="digits", net="mlp", devices=2, rounds=2, broker="auto", report=Path("r.json"),
    picture=Path("p.png"), keep=None, seed=0, samples=None, epochs=1.0, learning_rate=0.1,
    compression=None, dense=True, quiet=True, json=False,
)  # fmt: skip


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
        "updates_made",
        "updates_waiting",
        "personal",
        "warnings",
    ]
    assert list(report["releases"][0]) == ["number", "accuracy", "updates", "bytes_down"]
    assert list(report["devices"][0]) == [
        "id",
        "samples",
        "accuracy_first",
        "accuracy_last",
        "release",
        "accuracy_shared",
        "accuracy_runs",
        "accuracy_after",
        "serves",
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
        (FLEET._replace(releases=FLEET.releases[:1]), WELL, ["release 3", "give it more rounds"]),
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


@pytest.mark.parametrize(
    ("both", "said"),
    [
        (AGREED, []),
        (
            AGREED._replace(devices=(AGREED.devices[0]._replace(is_agreed=False),)),
            ["device-1 and the server do not remember the same"],
        ),
        (AGREED._replace(sum_error=0.01), ["sum of all memories is wrong by 0.01"]),
        (AGREED._replace(odd_averages=("device-1 has another average",)), ["another average"]),
    ],
)
def test_both_sides_must_carry_the_same(both: BothMemories, said: list[str]) -> None:
    complaints = verdict(FLEET, WELL, both)
    assert len(complaints) == len(said)
    for complaint, words in zip(complaints, said, strict=True):
        assert words in complaint
    assert both.words == (
        "" if said else "The server remembers 1 device: bit for bit what is on it."
    )
    assert both.report["agree"] is not bool(said)


def test_a_setting_of_the_command_line_takes_the_place_of_the_demos_own() -> None:
    plan = PLAN._replace(
        policy=(("learning.feedback", "memory"), ("aggregation.updates", 2), ("training.batch", 4))
    )
    task = plan.task(parameters=10_000)
    assert (task.learning.feedback, task.aggregation.updates, task.training.batch) == (
        "memory",
        2,
        4,
    )
    assert (task.codec.bytes, task.releases, task.aggregation.patience) == (800, 3, 0)
    written = to_toml({"task": [msgspec.to_builtins(task) | {"evaluation": {"data": "d.npz"}}]})
    (back,) = tomllib.loads(written)["task"]
    assert msgspec.convert(back, TaskConfig) == msgspec.structs.replace(
        task, evaluation=EvaluationPolicy("d.npz")
    )
    assert averages_plainly(PLAN.task(10_000))
    assert not averages_plainly(task)
    averaged = PLAN._replace(policy=(("learning.average", "auto"),)).task(10_000)
    assert not averages_plainly(averaged)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (OutboxFacts(made=5, steps_ever=70), "it trained 1 time meanwhile"),
        (OutboxFacts(made=3, steps_ever=70), "it trained 1 time meanwhile"),  # without an update
        (OutboxFacts(made=7, steps_ever=90), "it trained 3 times meanwhile"),
        (OutboxFacts(made=4, steps_ever=50), ""),
    ],
)
def test_a_line_comes_back_when_the_device_has_trained_whether_or_not_it_made_an_update(
    facts: OutboxFacts, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.demo.demo_troubles.OFF_LINE_S", 0.0)
    said: list[str] = []
    now = [OutboxFacts(made=3 if facts.made == 3 else 4, steps_ever=50)]
    relay = SimpleNamespace(cut=lambda: None, restore=lambda: None)
    device: Any = SimpleNamespace(
        id="device-1", relay=relay, what_we_did="", deliver=lambda portion: None
    )
    watch: Any = SimpleNamespace(facts=lambda device: now[0])
    view: Any = SimpleNamespace(tell=lambda text, style: said.append(text))
    trouble = OffLine(device, watch, view, at=1, last=9)
    trouble.tick(newest=1, runs=1)
    assert said.pop() == "device-1: line cut"
    now[0] = facts
    trouble.tick(newest=2, runs=1)
    assert trouble.over == bool(words)
    assert all(words in text for text in said)


def test_a_setting_that_does_not_exist_is_refused_before_anything_starts() -> None:
    with pytest.raises(UsageError, match=r"learning.feedbak"):
        PLAN._replace(policy=(("learning.feedbak", "memory"),)).task(10)


def test_the_report_says_how_the_dense_curve_was_measured_and_what_happened_when() -> None:
    report = make_report(
        FLEET._replace(devices=()),
        [],
        WELL,
        broker="embedded",
        net="mlp",
        parameters=1000,
        wall_s=1.0,
        timeline=TIMELINE,
        dense=DENSE,
    )
    dense = report["dense_float32"]
    assert isinstance(dense, dict)
    assert "trained again" in dense["how"]
    assert dense["releases"][1] == {"number": 2, "accuracy": 0.7, "bytes_up": 6000}
    # Release 3 is the first with 86 % (95 % of the way to 90 %) in both: 600 and 12,000 bytes.
    assert report["same_accuracy"] == {
        "accuracy": 0.86,
        "bytes_up": 600,
        "bytes_up_dense_float32": 12000,
        "factor": 20.0,
    }
    happened = report["timeline"]
    assert isinstance(happened, dict)
    assert happened["troubles"] == [
        {"device": "device-1", "what": "line cut", "from_s": 3.0, "to_s": 4.0}
    ]


@pytest.mark.parametrize(
    "releases",
    [(), FLEET.releases[:1], (FLEET.releases[0], FLEET.releases[1]._replace(accuracy=0.05))],
)
def test_bytes_are_compared_only_where_both_learned_something(
    releases: tuple[ReleaseView, ...],
) -> None:
    assert same_accuracy(releases, DENSE) is None
    assert same_accuracy(FLEET.releases, None) is None


@pytest.mark.parametrize(
    ("before", "after", "is_said"),
    [(0.461, 0.013, True), (0.9, 0.75, True), (0.9, 0.8, False), (0.2, 0.9, False)],
)
def test_a_device_that_got_much_worse_is_named_with_what_helps(
    before: float, after: float, is_said: bool
) -> None:
    device = DEVICE._replace(accuracy_first=before, accuracy=after)
    chance = device._replace(accuracy_first=0.5, accuracy=0.25, heldout=4)  # one sample of four
    assert warnings(FLEET._replace(devices=(chance,))) == []
    said = warnings(FLEET._replace(devices=(device,)))
    assert len(said) == is_said
    for warning in said:
        assert "device-1 got much worse" in warning
        assert "--personal" in warning


def test_a_fleet_that_fell_from_its_best_release_is_a_warning_too() -> None:
    fallen = FLEET._replace(releases=(*FLEET.releases, ReleaseView(4, 0.5, 2, 300, 6000, 400)))
    (said,) = warnings(fallen)
    assert "much worse than release 3: 90.0 % -> 50.0 %" in said
    assert warnings(FLEET) == []


@pytest.mark.parametrize(
    "course",
    [
        Course(
            "mlp", 1000.0, FLEET.releases, TIMELINE.probes, TIMELINE.troubles, DENSE,
            same_accuracy(FLEET.releases, DENSE),
        ),
        Course("one release", 1000.0, FLEET.releases[:1], (), (), None, None),
        Course("nothing", 1000.0, (), (), (TroubleMark("d", "SIGKILL", 1001.0, 0.0),), None, None),
        Course(
            "many", 1000.0, FLEET.releases,
            tuple(Probe(f"device-{n}", 1001.0 + n, 1, n / 40) for n in range(40)),
            TIMELINE.troubles, DENSE._replace(complete=False), None,
        ),
        Course(
            "nothing held out", 1000.0, FLEET.releases, (Probe("device-1", 1001.0, 1, None),), (),
            None, None,
        ),
    ],
    ids=lambda course: course.title,
)  # fmt: skip
def test_the_picture_is_a_slide_as_png_and_svg(course: Course, tmp_path: Path) -> None:
    png, svg = draw(course, tmp_path / "out" / "picture.png")
    head = png.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (2560, 1440)
    assert svg.read_text().count("<svg") == 1


def test_the_picture_says_the_factor_and_marks_the_trouble_in_words(tmp_path: Path) -> None:
    course = Course(
        "mlp on digits", 1000.0, FLEET.releases, TIMELINE.probes, TIMELINE.troubles, DENSE,
        same_accuracy(FLEET.releases, DENSE),
    )  # fmt: skip
    text = draw(course, tmp_path / "picture.png")[1].read_text()
    for words in ("20 times fewer bytes for the same accuracy", "device-1: line cut", "measured"):
        assert words in text


def test_console_and_picture_say_the_same_factor(tmp_path: Path) -> None:
    """Of 69.48: the report has 69.5, which would be 70 if it were rounded again."""
    last = ReleaseView(2, 0.9, 4, 100, 9999, 400)
    fleet = FleetView((), (FLEET.releases[0], last))
    dense = DenseRun((DenseRelease(1, 0.1, 0), DenseRelease(2, 0.9, 6948)), True, 1.0)
    report = make_report(
        fleet, [], WELL, broker="embedded", net="mlp", parameters=9, wall_s=1.0, dense=dense
    )
    said = io.StringIO()
    plan = DemoPlan(
        data="digits",
        net="mlp",
        devices=1,
        rounds=1,
        broker="auto",
        report=tmp_path / "report.json",
        picture=tmp_path / "picture.png",
        keep=None,
        seed=0,
        samples=None,
        epochs=1,
        learning_rate=0.1,
        compression=64,
        dense=True,
        quiet=False,
        json=False,
    )
    conclude(Console(file=said), plan, fleet, WELL, report, [], 1.0)
    course = Course(
        "mlp", 1000.0, fleet.releases, (), (), dense, same_accuracy(fleet.releases, dense)
    )
    drawn = draw(course, plan.picture)[1].read_text()
    assert "69 times fewer bytes" in said.getvalue()
    assert "69 times fewer bytes" in drawn


def test_an_update_grows_slower_than_the_net_unless_a_ratio_is_asked_for(tmp_path: Path) -> None:
    plan = DemoPlan(
        data="digits", net="mlp", devices=1, rounds=1, broker="auto", report=tmp_path,
        picture=tmp_path, keep=None, seed=0, samples=None, epochs=1, learning_rate=0.1,
        compression=None, dense=False, quiet=True, json=True,
    )  # fmt: skip
    assert [plan.update_bytes(n) for n in (10, 10_000, 1_000_000)] == [200, 800, 8000]
    asked = plan._replace(compression=64)
    assert [asked.update_bytes(n) for n in (10, 16_000)] == [200, 1000]


def fleet_of(devices: int, releases: int, prefix: str = "device-") -> FleetView:
    states = ("waiting", "training", "off line", "downloading")
    return FleetView(
        tuple(DEVICE._replace(id=f"{prefix}{n + 1}", state=states[n % 4]) for n in range(devices)),
        tuple(ReleaseView(n + 1, n / 100, 4, 4400, 275_600, 1600) for n in range(releases)),
    )


STORY = [
    Event(1.0, "release 1: accuracy 8.1 %; 146.2 kB to fetch", in_table=True),
    *(Event(10.0 * n, f"device-{n}: line cut, and then much more is said of it") for n in range(9)),
    Event(99.0, "device-3: started again as process 4711"),
]


@pytest.mark.parametrize("size", [(80, 24), (58, 20), (58, 24), (80, 12), (40, 10), (200, 60)])
@pytest.mark.parametrize(
    "fleet", [fleet_of(1, 1), fleet_of(4, 14), fleet_of(6, 14), fleet_of(30, 3)]
)
def test_the_newest_event_release_and_every_name_fit_the_screen(
    fleet: FleetView, size: tuple[int, int]
) -> None:
    width, height = size
    lines = [line.plain for line in lay_out(fleet, STORY, width=width, height=height, last=15)]
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "started again as" in lines[-1] + lines[-2]
    assert f"release {len(fleet.releases)} of 15" in lines[0]
    if height >= 20:
        assert any(line.split()[:1] == [str(len(fleet.releases))] for line in lines)
    if height >= 20 and len(fleet.devices) <= 6:
        assert all(f"{device.id} " in text for device in fleet.devices)


def test_old_releases_go_first_where_space_is_short_and_come_back_where_it_is_not() -> None:
    def numbers(height: int) -> list[int]:
        lines = lay_out(fleet_of(6, 14), STORY, width=80, height=height)
        rows = [line.plain.split()[0] for line in lines if line.plain.endswith("1.6 kB")]
        return [int(row) for row in rows]

    assert numbers(24) == [10, 11, 12, 13, 14]
    assert numbers(60) == list(range(1, 15))


@pytest.mark.parametrize("prefix", ["device-", "demo-0a1b2c3d-", "a-very-long-name-of-a-device-"])
def test_device_names_are_told_apart_on_58_columns(prefix: str) -> None:
    lines = [line.plain for line in lay_out(fleet_of(6, 3, prefix), [], width=58, height=20)]
    names = [line.split()[0] for line in lines[2:8]]
    assert len(set(names)) == 6
    assert all(name.endswith(f"-{n + 1}") for n, name in enumerate(names))


def test_of_too_many_devices_those_in_trouble_are_shown_and_the_others_counted() -> None:
    fleet = fleet_of(30, 3)
    calm = tuple(d._replace(state="waiting") for d in fleet.devices)
    fleet = fleet._replace(devices=(*calm[:-1], calm[-1]._replace(state="killed")))
    text = "\n".join(line.plain for line in lay_out(fleet, STORY, width=80, height=24))
    assert "device-30" in text
    assert "more devices: " in text
    assert "waiting" in text


def test_how_far_a_large_transfer_is_stands_in_the_table_and_is_said_elsewhere() -> None:
    device = DEVICE._replace(state="downloading", fetching=(33_000_000, 89_600_000))
    fleet = FLEET._replace(devices=(device,))
    lines = lay_out(fleet, [], width=80, height=24)
    assert "fetching 36 %" in "\n".join(line.plain for line in lines)
    out = io.StringIO()
    view = View(Console(file=out, width=200))
    view.show(fleet)
    view._fetch_said_at -= 6.0  # as if it had been at it for so long
    view.show(fleet)
    assert "fetching release 3: device-1 33.0 MB of 89.6 MB" in out.getvalue().splitlines()[-1]


def test_what_a_device_complains_of_is_told_once() -> None:
    out = io.StringIO()
    view = View(Console(file=out, width=200))
    fleet = FLEET._replace(devices=(DEVICE._replace(problem="release 1 is too large"),))
    view.show(fleet)
    view.show(fleet)
    assert out.getvalue().count("device-1 says: release 1 is too large") == 1


def test_the_story_stays_on_a_terminal_that_is_interrupted() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, highlight=False)
    view = View(console, last=13)

    def interrupted() -> None:
        with view.running():
            view.show(FLEET)
            view.tell("device-1: line cut")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    view.last_words("Stopped by Ctrl-C")
    tail = out.getvalue().rpartition("\x1b[2K")[2]  # what is after the live picture was wiped
    for words in ("release 1: accuracy", "line cut", "Stopped by Ctrl-C", "release 3 of 13"):
        assert words in tail


def test_counts_and_lists_are_grammar() -> None:
    assert [counted(n, "device") for n in (0, 1, 2)] == ["0 devices", "1 device", "2 devices"]
    assert [listed(list(text)) for text in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


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
        (["--batch", "0"], "--batch 0: take 1 to 1024"),
        (["--server-rate", "0"], "--server-rate 0: take more than 0, at most 1"),
        (["--holdout", "1"], "--holdout 1: take 0 to 0.5"),
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
        "import sys, time; from pathlib import Path;"
        "from tools.local_fleet.process import Process;"
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
