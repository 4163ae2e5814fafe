"""What an operator should look at: all of it, the most urgent first, each said once."""

import logging
import os
import unicodedata

import pytest

from edge_agent.board.problems import URGENCY, Problems, sentence_of
from models.host.sentences import LONGEST_NAME, brief


def test_no_problem_hides_another() -> None:
    problems = Problems()
    for part in reversed(URGENCY):
        problems.say(part, f"{part} is bad")
    problems.say("something else", "odd")
    assert [problem.part for problem in problems.all()] == [*URGENCY, "something else"]
    assert problems.most_urgent == "identity is bad"
    problems.clear("identity")
    assert problems.most_urgent == "broker is bad"


def test_a_problem_remembers_since_when_it_is_there() -> None:
    problems = Problems()
    problems.now = 10.0
    problems.say("broker", "gone")
    problems.now = 20.0
    problems.say("broker", "gone, for another reason")
    (problem,) = problems.all()
    assert (problem.text, problem.since) == ("gone, for another reason", 10.0)
    problems.clear("broker")
    problems.say("broker", "gone")
    assert problems.all()[0].since == 20.0


def test_texts_that_alternate_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    problems = Problems()
    for _ in range(1000):
        problems.say("broker", "no network")
        problems.say("broker", "no answer")
    problems.clear("broker")
    assert [record.message for record in caplog.records] == [
        "problem part=broker: no network",
        "problem part=broker: no answer",
        "problem solved part=broker",
    ]


NAMES = [
    "a\nb\r\x1b[31mred\x07",  # what a terminal would obey
    os.fsdecode(b"K\xfcche.npz"),
    "\u202egpj.exe \u200f \ufeff",  # what turns the text around, or is not seen
    "\ud800\udfff \uffff \U0010ffff",
    unicodedata.normalize("NFD", "Küche"),
    "\x00\x7f\x85\u2028",
    os.fsdecode(b"\xff" * 255),
    "x" * 255,
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_said_in_a_short_line_that_utf8_can_hold(name: str) -> None:
    for text in (brief(name), sentence_of(ValueError(name)), sentence_of(OSError(2, "gone", name))):
        assert text.isprintable()
        assert "\n" not in text
        text.encode()
        assert len(text) <= 500
    assert len(brief(name)) <= LONGEST_NAME + 3


def test_what_a_stranger_makes_of_one_part_does_not_end_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = Problems()
    with problems.contained("inbox", whatever=True):
        raise UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed")
    assert problems.most_urgent.startswith("UnicodeEncodeError: ")
    assert "mistake of edgefold" in problems.most_urgent
    with problems.contained("inbox", whatever=True):
        pass
    assert problems.most_urgent == ""
    with pytest.raises(ValueError, match="ours"), problems.contained("learner"):
        raise ValueError("ours")
