"""What an operator should look at: all of it, the most urgent first, each said once."""

import logging

import pytest

from edge_agent.problems import URGENCY, Problems


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
