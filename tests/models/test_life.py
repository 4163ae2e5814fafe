"""`models.life`: a table decides, and draws what it decides."""

from enum import StrEnum

import pytest

from models.life import Life, Step


class Lamp(StrEnum):
    OFF = "off"
    ON = "on"
    BROKEN = "broken"


class Event(StrEnum):
    PRESSED = "pressed"
    FELL = "fell"


LIFE = Life(
    (
        Step(Lamp.OFF, Event.PRESSED, Lamp.ON),
        Step(Lamp.ON, Event.PRESSED, Lamp.OFF),
        Step(Lamp.ON, Event.FELL, Lamp.BROKEN),
    ),
    durable={Lamp.OFF: "nothing", Lamp.ON: "a light", Lamp.BROKEN: "shards"},
)


def test_an_event_leads_where_the_table_says() -> None:
    assert LIFE.after(Lamp.OFF, Event.PRESSED) is Lamp.ON
    assert LIFE.allows(Lamp.ON, Event.FELL)
    assert LIFE.ends() == {Lamp.BROKEN}


def test_what_the_table_has_not_cannot_happen() -> None:
    assert not LIFE.allows(Lamp.BROKEN, Event.PRESSED)
    with pytest.raises(RuntimeError, match="'pressed' cannot happen to what is broken"):
        LIFE.after(Lamp.BROKEN, Event.PRESSED)


def test_the_diagram_has_a_line_for_each_step() -> None:
    assert LIFE.diagram().splitlines() == [
        "stateDiagram-v2",
        "    [*] --> off",
        "    off --> on: pressed",
        "    on --> off: pressed",
        "    on --> broken: fell",
        "    broken --> [*]",
    ]


def test_a_state_that_says_nothing_of_the_disk_is_no_part_of_a_life() -> None:
    with pytest.raises(AssertionError):
        Life(LIFE.steps, durable={Lamp.OFF: "", Lamp.ON: ""})
