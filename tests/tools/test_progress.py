"""How far a long run is: lines where there is no terminal, silence where nobody wants to hear."""

import threading

import pytest

from tools.progress import bar, progress_line
from tools.simulation.players import play_all
from tools.simulation.scenario.fleet_settings import Settings


@pytest.mark.parametrize(
    ("share", "words", "elapsed_s", "line"),
    [
        (0.0, "", 12.0, "simulate: 0 %; 0:12 so far"),
        (0.4, "day 3 of 7", 80.0, "simulate: 40 %, day 3 of 7; 1:20 so far, about 2:00 to go"),
        (0.5, "", 3725.0, "simulate: 50 %; 1:02:05 so far, about 1:02:05 to go"),
        (1.0, "", 9.0, "simulate: 100 %; 0:09 so far"),
        (1.2, "", 9.0, "simulate: 100 %; 0:09 so far"),
    ],
)
def test_a_line_says_how_far_how_long_and_how_much_longer(
    share: float, words: str, elapsed_s: float, line: str
) -> None:
    assert progress_line("simulate", share, words, elapsed_s) == line


def test_without_a_terminal_lines_come_also_while_nothing_new_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = ""
    with bar(what="work", every_s=0.01) as tell:
        tell(0.25, "one stage that takes long")
        for _ in range(3000):  # until there are two; a busy machine may take its time
            said += capsys.readouterr().err
            if said.count("work: 25 %, one stage that takes long") >= 2:
                break
            threading.Event().wait(0.01)
    assert said.count("work: 25 %, one stage that takes long") >= 2
    capsys.readouterr()
    threading.Event().wait(0.05)
    assert capsys.readouterr().err == "", "nothing after its end"


def test_a_short_run_and_a_quiet_one_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(what="work") as tell:
        tell(0.5, "half")
    with bar(what="work", shown=False, every_s=0.001) as tell:
        tell(0.5, "half")
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_simulation_says_how_far_all_of_its_processes_are(jobs: int) -> None:
    told: list[tuple[float, str]] = []
    settings = Settings(devices=2, hours=2.0)
    runs = [(seed, settings) for seed in (1, 2, 3)]
    found = list(play_all(runs, jobs, lambda share, words: told.append((share, words))))
    assert [outcome.seed for outcome in found] == [1, 2, 3]
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert any(0 < share < 1 for share in shares)
    assert all("of 3 seeds done" in words for _, words in told)
