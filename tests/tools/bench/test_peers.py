"""``edgefold bench peers``: what it counts, what it promises, and that our own arm plays."""

import json
import sys
import time
from pathlib import Path

import pytest

from tools import cli
from tools.bench.peers.course import ArmRun, Reading, Round, Sample
from tools.bench.peers.peer_figures import figures
from tools.bench.peers.process_books import Books, Root
from tools.bench.peers.side_by_side import goals, table
from tools.bench.peers.supervised import Supervised, wait_until
from tools.local_fleet.local_broker import find_mosquitto


def course(
    arm: str, *, factor: float = 1.0, up: int = 100, problems: tuple[str, ...] = ()
) -> ArmRun:
    """An arm of two clients and three rounds of ten seconds, in which all grows evenly."""

    def sample(at: float) -> Sample:
        return Sample(
            at,
            {
                "client-1": Reading(factor * at, 50 * factor, 20 * factor),
                "client-2": Reading(3 * factor * at, 70 * factor, None),
                "server": Reading(0.5 * at, 40.0, 30.0),
            },
            ((round(up * at), round(10 * factor * at)), (round(3 * up * at), 0)),
        )

    rounds = tuple(Round(n, 10.0 * (n + 1), a) for n, a in enumerate((0.1, 0.5, 0.65, 0.8)))
    samples = tuple(sample(float(at)) for at in range(0, 101, 4))
    return ArmRun(arm, 2, 4.0, 44.0, rounds, samples, idle=(64.0, 94.0), problems=problems)


def test_the_figures_are_what_was_spent_between_the_marks() -> None:
    found = figures(course("ours"))
    assert found.accuracies == (0.1, 0.5, 0.65, 0.8)
    assert found.accuracy == pytest.approx(0.65)
    reached = {row.accuracy: row for row in found.reached}
    # 4.5 CPU seconds a second, from second 4 on; 60 % comes with round 2, at second 30.
    assert reached[0.6].round == 2
    assert reached[0.6].wall_s == 26
    assert reached[0.6].cpu_s == pytest.approx(4.5 * 26)
    assert reached[0.75].round == reached[None].round == 3
    assert found.round_wall_s == 10
    assert found.round_cpu_s == pytest.approx(45)
    assert found.cpu_s_by_role == pytest.approx({"clients": 4 * 36, "server": 0.5 * 36})
    assert found.bytes_up == pytest.approx((1000 + 3000) / 2)
    assert found.bytes_down == pytest.approx(50)
    assert found.first_bytes_down == pytest.approx(5 * 16)
    assert found.job_bytes_up == pytest.approx(200 * 40)
    assert (found.client_rss_mb, found.client_pss_mb) == (60, 10)
    assert found.idle is not None
    assert found.idle.cpu_s_per_minute == pytest.approx(120)
    assert found.idle.bytes_per_minute == pytest.approx((4 * 100 + 10) / 2 * 60, rel=1e-3)


def test_what_a_goal_demands_is_held_against_every_peer() -> None:
    ours = figures(course("ours"))
    peer = figures(course("peer", factor=40.0, up=100 * 60))
    near = figures(course("near", factor=1.5, up=100 * 49))

    def missed(
        *others: object, rounds: int = 10, mine: object = ours, size: int = 2000
    ) -> set[str]:
        found = goals([[mine]], [[o] for o in others], update_bytes=[size], rounds=rounds)  # type: ignore[list-item]
        return {goal.name for goal in found if not goal.reached}

    assert missed(peer) == set()
    assert missed(near) == {f"ours: {what} against near" for what in (
        "bytes up", "bytes down", "memory at work",
    )}  # fmt: skip
    assert missed(size=-1) == {"ours: bytes up"}
    better = peer._replace(accuracy=ours.accuracy + 0.011)
    assert missed(better) == {"ours: accuracy against peer"}
    assert missed(better, rounds=2) == set(), "two rounds say nothing of accuracy"
    lost = figures(course("ours", problems=("3 updates were lost",)))
    assert missed(mine=lost) == {"ours: every update folded once"}


def test_the_table_has_a_column_for_each_arm_and_says_how_many_times() -> None:
    ours, peer = course("ours"), course("peer", factor=2.0)
    rows = table([[figures(ours), figures(ours)], [figures(peer)]])
    assert rows[0] == ["", "ours", "peer"]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["client at work, peak RSS MB"] == ["60 (60, 60)", "120 2.0x"]
    assert cells["accuracy of round 2, %"] == ["65.00, 65.00", "65.00"]
    assert {len(row) for row in rows} == {3}


BURN = "import time\nwhile time.process_time() < 0.5: pass"


def test_cpu_of_processes_that_detached_themselves_and_ended_is_counted(tmp_path: Path) -> None:
    """As NVFLARE's start.sh: the program ends, what it left in the background works on."""
    grandchild = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}]).wait()"
    )
    words = f'setsid {sys.executable} -c "$GRANDCHILD" & echo begun'
    around = {"PATH": "/usr/bin:/bin", "GRANDCHILD": grandchild}
    run = Supervised("role", ["bash", "-c", words], environment=around, directory=tmp_path)
    books = Books()
    try:
        books.add("role", Root(run.pid, counts_itself=False))
        books.start()
        run.wait(30)
        wait_until(lambda: books.samples[-1].roles["role"].cpu_s > 0.45, 30, what="the grandchild")
        wait_until(lambda: books.samples[-1].roles["role"].rss_mb == 0, 30, what="its end")
        books.close()
        assert 0.5 <= books.samples[-1].roles["role"].cpu_s < 2
        assert max(sample.roles["role"].rss_mb for sample in books.samples) > 3
    finally:
        run.end()
    assert (tmp_path / "role.log").read_text() == "begun\n"


def test_what_a_peer_left_running_ends_with_its_role(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    words = f"(while true; do touch {alive}; sleep 0.1; done) & disown"
    around = {"PATH": "/usr/bin:/bin"}
    run = Supervised("role", ["bash", "-c", words], environment=around, directory=tmp_path)
    run.wait(30)
    wait_until(alive.exists, 30, what="the loop")
    run.end()
    alive.unlink()
    time.sleep(0.5)
    assert not alive.exists()


@pytest.mark.slow
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_our_arm_alone_needs_no_peer_and_keeps_its_promises(tmp_path: Path) -> None:
    report = tmp_path / "peers.json"
    words = "bench peers --peers none --data digits --net mlp --devices 2 --rounds 2 --bytes 1000"
    options = ["--repeats", "1", "--idle-seconds", "0", "--report", str(report)]
    assert cli.main([*words.split(), *options]) == 0
    found = json.loads(report.read_text())
    (run,) = found["arms"]["edgefold 1000"]
    assert len(run["accuracies"]) == 3
    assert run["accuracies"][-1] > run["accuracies"][0]
    assert run["cpu_s_by_role"]["clients"] > run["cpu_s_by_role"]["server"] > 0
    assert 0 < run["bytes_up"] < 3000 < found["job"]["dense_bytes"] < run["first_bytes_down"]
    assert 20 < run["client_rss_mb"] < 300
    assert all(goal["reached"] for goal in found["goals"])


def test_a_peer_without_an_environment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "peers", "--venv-flower", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"--venv-flower {tmp_path}: there is no {tmp_path}/bin/flwr" in said
    assert "pip install flwr==" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--peers fedml", "--peers fedml: take flower, nvflare, or none"),
        ("--net mlp", "--net mlp: the peers' job has cnn; or --peers none"),
        ("--bytes 100", "--bytes 100: take numbers of at least 200, each once"),
        ("--bytes 5000,5000", "each once"),
        ("--bytes many", "take numbers"),
        ("--repeats 0", "--repeats 0: take 1 to 100"),
        ("--rounds 0", "--rounds 0: take 1 to 1000"),
        ("--idle-seconds -1", "--idle-seconds -1: take 0 to 3600"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "peers", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
