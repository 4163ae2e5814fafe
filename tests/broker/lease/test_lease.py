"""Several servers on one fleet: whatever the order of events, one serves, and nothing flaps.

The servers are real ones (`leaseholder.py`) but for what they serve, over a broker in memory.
What a server read, what it does about it and what others do between can be in any order.
"""

import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.lease.lease import ANSWER_S, AWAY_S, SILENT_S, Lease
from broker.lease.leaseholder import Leaseholder, farewell
from broker.lease.server_state import ServerState
from models.protocol.messages import ServerStatus, decode_message, encode_message
from models.protocol.topics import Topics
from models.transport.link import Disconnected, Event, Link
from tools.simulation.machines.memory_broker import Client, MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink

TOPICS = Topics("farm")
MINUTE_S = 60.0


class CountingBroker(MemoryBroker):
    """Counts how often one client pushed out another one."""

    pushes = 0

    def connect(self, link: Client) -> bool:
        session = self.sessions.get(link.client_id)
        self.pushes += session is not None and session.link is not None
        return super().connect(link)


class Work:
    """What a server does while it serves: here, it counts."""

    status = "at release 1"

    def __init__(self, link: Link) -> None:
        self.link = link
        self.ticks = 0
        self.is_closed = False

    def handle(self, event: Event, now: float, wall: float) -> None:
        assert not self.is_closed

    def tick(self, now: float, wall: float) -> float:
        assert not self.is_closed
        self.ticks += 1
        return now + 10.0

    def state(self, started: float, now: float) -> ServerState:
        return ServerState("0", started, now, is_connected=True, since=started)

    def drop_suspect(self) -> None:
        return

    def close(self) -> None:
        self.is_closed = True


class Machine:
    """One server that may be started, stopped, killed, frozen; ``client_id`` is its setting."""

    def __init__(self, world: "World", name: str, client_id: str, *, is_told: bool) -> None:
        self.world = world
        self.name = name
        self.client_id = client_id
        self.is_told = is_told
        self.holder: Leaseholder | None = None
        self.works: list[Work] = []
        self.mains: list[MemoryLink] = []
        self.is_frozen = False
        self._events: list[Event] = []
        self._starts = itertools.count(1)

    def start(self) -> None:
        if self.holder is not None:
            return
        instance = f"{ord(self.name) % 16:x}{next(self._starts):07x}"
        own = ServerStatus(online=True, instance=instance, host=f"hub-{self.name}", tasks=("a",))
        will = TOPICS.server_status, encode_message(farewell(own))
        self.scout_id = f"{self.client_id}-{instance}"

        def make_main() -> MemoryLink:
            link = MemoryLink(
                self.world.broker,
                client_id=self.client_id,
                will=will,
                waits=True,
                is_told=self.is_told,
            )
            self.mains.append(link)
            return link

        def make_work(link: Link) -> Work:
            self.works.append(Work(link))
            return self.works[-1]

        self.holder = Leaseholder(
            topics=TOPICS,
            own=own,
            client_id=self.client_id,
            make_scout=lambda: MemoryLink(
                self.world.broker, client_id=self.scout_id, is_passing=True
            ),
            make_main=make_main,
            make_server=make_work,
            wall=self.world.wall,
        )
        self.holder.start(self.world.wall)

    def read(self) -> None:
        """First half of a step of the server's loop."""
        if self.holder is not None and not self.is_frozen:
            self._events += self.holder.poll(0.0)

    def act(self) -> None:
        """Second half of it."""
        if self.holder is None or self.is_frozen:
            return
        events, self._events = self._events, []
        for event in events:
            self.holder.handle(event, self.world.now, self.world.wall)
        self.holder.tick(self.world.now, self.world.wall)

    def stop(self) -> None:
        if self.holder is not None:
            self.act()
            self.holder.close()
            self.holder = None

    def kill(self) -> None:
        """SIGKILL: the broker sees the connection end, and publishes the will."""
        if self.holder is not None:
            if self.has_main:
                self.world.broker.drop_link(self.client_id)
            self.mains[-1].close()
            self.world.broker.drop_link(self.scout_id)
            self.holder, self._events, self.is_frozen = None, [], False

    def cut(self) -> None:
        """The line breaks, and is back at once."""
        if self.holder is not None:
            self.world.broker.drop_link(self.client_id if self.has_main else self.scout_id)

    @property
    def has_main(self) -> bool:
        """Whether the broker's connection of the client id is ours."""
        session = self.world.broker.sessions.get(self.client_id)
        return session is not None and session.link in self.mains

    @property
    def serves(self) -> bool:
        return self.holder is not None and self.holder.standing.is_up and self.state == "serving"

    @property
    def state(self) -> str:
        return self.holder.standing.state if self.holder is not None else "down"


class World:
    """Some servers, a broker and a clock."""

    def __init__(self, ids: Sequence[str] = ("x", "x"), *, is_told: bool = True) -> None:
        self.now = 1000.0
        self.skew = 0.0  # of the clock on the wall
        self.broker = CountingBroker(lambda: self.now)
        self.machines = [
            Machine(self, name, client_id, is_told=is_told)
            for name, client_id in zip("abcd", ids, strict=False)
        ]

    @property
    def wall(self) -> float:
        return 1_700_000_000.0 + self.now + self.skew

    def run(self, seconds: float) -> None:
        """Let all run as they do when nothing special happens."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            for machine in self.machines:
                machine.read()
                machine.act()

    def who(self) -> list[str]:
        return [machine.name for machine in self.machines if machine.serves]

    def told(self) -> ServerStatus:
        return decode_message(self.broker.retained[TOPICS.server_status], ServerStatus)

    def settle(self) -> None:
        """Within a minute one serves, and says so; nothing changes in the next one."""
        for machine in self.machines:
            machine.start()
            machine.is_frozen = False
        self.run(MINUTE_S)
        (who,) = self.who()
        assert self.told().online
        assert self.told().host == f"hub-{who}"
        assert [m.state for m in self.machines].count("standing by") == len(self.machines) - 1
        before = self.broker.pushes
        tenures = [len(machine.works) for machine in self.machines]
        for _ in range(120):
            self.run(0.5)
            assert self.who() == [who]
        assert self.broker.pushes == before
        assert [len(machine.works) for machine in self.machines] == tenures


# The orders of events


def play(world: World, order: Sequence[str]) -> None:
    a, b = world.machines[:2]
    for step in order:
        match step:
            case "A":
                a.read()
            case "a":
                a.act()
            case "B":
                b.read()
            case "b":
                b.act()
        world.now += 0.01
    world.settle()
    assert world.broker.pushes <= 1, "they push each other out in turn"


BEGINNINGS = ("both start", "one serves", "one was killed", "the line breaks", "one stops")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ids", "is_told"),
    [(("x", "x"), True), (("x", "x"), False), (("x", "y"), True)],
    ids=["one id, mqtt5", "one id, mqtt311", "two ids"],
)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_every_order_of_two_servers_steps_ends_with_one_that_serves(
    beginning: str, ids: tuple[str, str], *, is_told: bool
) -> None:
    """All orders of six half steps, from situations in which both may believe to be alone."""
    logging.disable()  # a million lines
    for order in itertools.product("AaBb", repeat=6):
        if any(step == before for before, step in itertools.pairwise(order)):
            continue  # the second one does nothing
        world = World(ids, is_told=is_told)
        a, b = world.machines
        a.start()
        if beginning != "both start":
            world.run(5.0)
            assert a.serves
        if beginning == "one was killed":
            a.kill()
            a.start()
        elif beginning == "the line breaks":
            a.cut()
        elif beginning == "one stops":
            b.start()
            world.run(5.0)
            a.stop()
            world.run(AWAY_S + 1)  # so that it comes back when the other one takes over
            a.start()
        b.start()
        play(world, order)


@pytest.fixture(autouse=True)
def log_again() -> Iterator[None]:
    yield
    logging.disable(logging.NOTSET)


FAULTS = ("start", "stop", "kill", "cut", "freeze", "thaw")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_history_of_faults_ends_with_one_that_serves(data: st.DataObject) -> None:
    ids = data.draw(st.sampled_from([("x", "x"), ("x", "x", "x"), ("x", "y"), ("x", "x", "y")]))
    world = World(ids, is_told=data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(1, 40))):
        machine = data.draw(st.sampled_from(world.machines))
        match data.draw(st.sampled_from((*FAULTS, "read", "act", "step", "wait", "wipe", "skew"))):
            case "read":
                machine.read()
            case "act":
                machine.act()
            case "step":
                machine.read()
                machine.act()
            case "wait":
                world.run(data.draw(st.sampled_from([0.5, 2.0, 12.0, 45.0])))
            case "wipe":
                world.broker.lose_all_state()
            case "skew":
                world.skew = data.draw(st.sampled_from([-1e9, -100.0, 0.0, 100.0]))
            case "freeze":
                machine.is_frozen = True
            case "thaw":
                machine.is_frozen = False
            case fault:
                getattr(machine, fault)()
    world.settle()


# Single stories


def served(*ids: str) -> World:
    """A world whose first server serves; the others are there."""
    world = World(ids or ("x", "x"))
    world.machines[0].start()
    world.run(3.0)
    for machine in world.machines[1:]:
        machine.start()
    world.run(15.0)
    assert world.who() == ["a"]
    return world


def test_a_second_server_stands_by_and_pushes_nobody_out() -> None:
    world = served()
    a, b = world.machines
    world.run(600.0)
    assert (a.state, b.state, world.broker.pushes) == ("serving", "standing by", 0)
    assert b.holder is not None
    assert b.works[-1].ticks == 0
    assert "another server (host hub-a, since" in b.holder.status
    assert "serves fleet farm; this one stands by and takes over" in b.holder.status


def test_standing_by_costs_devices_nothing() -> None:
    """They read ``server/status``; servers ask and answer each other on another topic."""
    world = served()
    device = MemoryLink(world.broker, client_id="dev-1")
    device.start()
    device.poll(0.0)
    device.subscribe([TOPICS.server_status])
    device.poll(0.0)
    before = device.traffic().bytes_down
    world.run(600.0)
    assert device.traffic().bytes_down == before


@pytest.mark.parametrize("going", ["stop", "kill", "freeze"])
def test_the_other_one_takes_over_within_a_minute(going: str) -> None:
    world = served()
    a, b = world.machines
    if going == "freeze":  # a power cut: the broker does not know of it yet
        a.is_frozen = True
    else:
        getattr(a, going)()
    world.run(MINUTE_S)
    assert b.serves
    assert world.told().host == "hub-b"


def test_a_server_that_is_restarted_keeps_the_fleet() -> None:
    world = served()
    a, b = world.machines
    for going in ("stop", "kill"):
        getattr(a, going)()
        world.run(AWAY_S - 1)
        a.start()
        world.run(2.0)
        assert (world.who(), b.state) == (["a"], "standing by")


def test_a_server_serves_at_once_after_its_own_end() -> None:
    world = World(("x",))
    a = world.machines[0]
    a.start()
    world.run(3.0)
    assert a.serves
    for going in ("stop", "kill"):
        getattr(a, going)()
        a.start()
        world.run(2.0)
        assert a.serves


def test_a_server_serves_within_seconds_after_a_power_cut_that_nobody_noticed() -> None:
    world = World(("x", "x"))
    a, b = world.machines  # b is the same machine after the cut
    a.start()
    world.run(3.0)
    a.is_frozen = True
    b.start()
    world.run(ANSWER_S + 2.0)
    assert b.serves


def test_a_server_in_the_middle_of_long_work_is_not_taken_for_dead() -> None:
    world = served()
    a, b = world.machines
    for _ in range(int(3 * SILENT_S)):  # one fold
        assert a.holder is not None
        a.holder.stay_alive(world.now)
        world.now += 1.0
        b.read()
        b.act()
    assert (b.state, world.broker.pushes) == ("standing by", 0)
    world.run(5.0)
    assert world.who() == ["a"]


def test_what_came_in_the_middle_of_long_work_is_not_lost() -> None:
    world = World(("x",))
    a = world.machines[0]
    a.start()
    world.run(3.0)
    assert a.holder is not None
    a.mains[0].subscribe(["device"])
    a.holder.poll(0.0)
    world.broker.accept("device", b"update", retain=False)
    a.holder.stay_alive(world.now)
    (event,) = a.holder.poll(0.0)
    assert event.payload == b"update"  # type: ignore[union-attr]


def test_who_was_pushed_out_waits_for_a_word_of_the_one_who_did_it() -> None:
    """What stands on the topic then is its own will."""
    world = World()
    a, b = world.machines
    a.start()
    world.run(3.0)
    a.is_frozen = True
    b.start()
    while not b.has_main:
        world.run(0.5)
    a.is_frozen, b.is_frozen = False, True  # it cannot announce itself yet
    world.run(ANSWER_S / 2)
    assert (a.state, world.broker.pushes) == ("looking", 1)
    b.is_frozen = False
    world.run(10.0)
    assert (world.who(), a.state, world.broker.pushes) == (["b"], "standing by", 1)


def test_a_line_that_broke_costs_a_server_neither_the_fleet_nor_what_it_was_doing() -> None:
    world = served()
    a, b = world.machines
    a.cut()
    world.run(3.0)
    assert (world.who(), b.state) == (["a"], "standing by")
    assert len(a.works) == 1, "the same server goes on"


def test_who_served_before_another_begins_anew() -> None:
    """Its releases, receipts and subscriptions are of a time before the other's."""
    world = served()
    a, b = world.machines
    a.is_frozen = True
    world.run(MINUTE_S)
    assert b.serves
    a.is_frozen = False
    world.run(5.0)
    assert (world.who(), a.state) == (["b"], "standing by")
    b.stop()
    world.run(MINUTE_S)
    assert world.who() == ["a"]
    assert len(a.works) == 2
    assert a.works[0].is_closed


def test_a_takeover_is_said_with_what_it_means(caplog: pytest.LogCaptureFixture) -> None:
    world = served()
    a = world.machines[0]
    stranger = MemoryLink(world.broker, client_id="x")
    stranger.start()
    stranger.poll(0.0)
    world.run(1.0)
    assert "session taken over: another client of the MQTT broker uses client id x" in caplog.text
    assert not a.serves
    world.run(ANSWER_S + 2.0)
    assert a.serves, "nobody answered"
    assert a.holder is not None
    assert "no server of this fleet, seems to use client id x too" in a.holder.status


def test_a_stranger_is_suspected_where_the_broker_gives_no_reason() -> None:
    """Mosquitto 2.0.11 closes the connection without one; the two would be at it each second."""
    world = World(("x",), is_told=False)
    a = world.machines[0]
    a.start()
    world.run(3.0)
    pushes = 0
    for _ in range(60):
        if a.serves:
            stranger = MemoryLink(world.broker, client_id="x")
            stranger.start()
            stranger.poll(0.0)
            pushes += 1
        world.run(1.0)
    assert pushes <= 8
    assert a.holder is not None
    world.run(ANSWER_S + 2.0)
    assert "no server of this fleet, seems to use client id x too" in a.holder.status


@pytest.mark.parametrize("is_stuck", [False, True])
def test_a_broker_that_closes_over_a_publication_is_no_other_client(is_stuck: bool) -> None:
    """The link sees after some connections that each ended over the same one."""
    world = World(("x",), is_told=False)
    a = world.machines[0]
    a.start()
    world.run(3.0)
    ends = 0
    for _ in range(120):
        if a.serves and ends < 6:
            assert a.holder is not None
            link = a.mains[-1]
            world.broker.drop_link("x")
            ends += 1
            link._events = deque(
                event._replace(is_stuck=is_stuck and ends > 3)
                if isinstance(event, Disconnected)
                else event
                for event in link._events
            )
        world.run(1.0)
    assert ends == 6
    assert a.serves
    assert a.holder is not None
    assert ("seems to use client id x too" in a.holder.status) is not is_stuck


def test_after_the_broker_was_away_the_one_that_served_goes_on() -> None:
    """Each tries to reach it again when its turn comes, and a spare may be the first."""
    world = served()
    a, b = world.machines
    told = world.broker.retained[TOPICS.server_status]
    for machine in world.machines:
        world.broker.set_reachable(machine.scout_id, False)
    world.broker.set_reachable("x", False)
    # The broker crashed, so no will of it was published.
    world.broker.retained[TOPICS.server_status] = told
    world.run(60.0)
    world.broker.set_reachable("x", True)
    world.broker.set_reachable(b.scout_id, True)
    world.run(110.0)
    assert (a.state, b.state) == ("looking", "standing by")
    world.broker.set_reachable(a.scout_id, True)
    world.run(10.0)
    assert (world.who(), b.state, world.broker.pushes) == (["a"], "standing by", 0)


def test_a_goodbye_counts_for_who_says_it() -> None:
    """A will may be published late, when another one serves already."""
    lease = Lease(ServerStatus(online=True, instance="0a"))
    lease.begin(0.0)
    lease.hear(ServerStatus(online=True, instance="0b"), 0.1, is_live=False)
    lease.hear(ServerStatus(online=False, instance="0c"), 0.2, is_live=True)
    lease.confirm(0.2)
    assert lease.move(0.3, can_speak=True) == "ask"
    assert lease.move(1.9, can_speak=True) == ""
    lease.hear(ServerStatus(online=True, instance="0b"), 2.0, is_live=True)
    lease.hear(ServerStatus(online=False, instance="0c"), 3.0, is_live=True)
    assert lease.move(3.0 + SILENT_S - 2.0, can_speak=True) == "ask"
    assert lease.state == "standing by"


def test_who_lost_a_connection_waits_a_second_for_a_word_of_another() -> None:
    """Where the broker gives no reason, what stands on the topic is its own will."""
    lease = Lease(ServerStatus(online=True, instance="0a"))
    lease.cannot_look()
    assert lease.move(0.0, can_speak=False) == "serve"
    lease.began(0.0)
    lease.connected(0.0)
    lease.lost(100.0, was_pushed=False)
    lease.begin(100.0)
    lease.hear(ServerStatus(online=False, instance="0a"), 100.1, is_live=False)
    lease.confirm(100.1)
    assert lease.move(100.2, can_speak=True) == "ask"
    assert lease.move(101.0, can_speak=True) == ""
    assert lease.move(101.2, can_speak=True) == "serve"


def test_a_broker_that_refuses_the_other_name_is_served_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(("x",))
    a = world.machines[0]
    a.start()
    assert a.holder is not None
    a.holder.handle(
        Disconnected("the broker refuses our client id", is_refused=True), world.now, world.wall
    )
    a.act()
    world.run(1.0)
    assert a.serves
    assert "without having looked for other servers" in caplog.text


def test_of_two_servers_with_different_client_ids_the_older_one_stays() -> None:
    world = World(("x", "y"))
    a, b = world.machines
    a.start()
    a.read()
    b.start()
    for _ in range(6):  # both look, hear of nobody, and begin
        world.now += 0.5
        for half in (a.read, b.read, a.act, b.act):
            half()
    world.run(15.0)
    assert len(world.who()) == 1
    world.settle()


def test_what_the_broker_kept_from_before_is_no_word_of_today() -> None:
    """The session has what others said while its server was away."""
    world = World(("x", "y"))
    a, b = world.machines
    a.start()
    world.run(3.0)
    a.stop()
    b.start()
    world.run(3.0)
    assert b.serves
    b.stop()
    world.skew = 3600.0  # that one was the older one, too
    a.start()
    for _ in range(20):
        world.run(0.5)
        assert a.state != "standing by"
    assert a.serves
    assert len(a.mains) == 2, "one for each start: it never yielded"


def test_nonsense_on_the_topic_is_put_right() -> None:
    world = served()
    for payload in (b"", b"{", encode_message(ServerStatus(online=False, instance="00"))):
        world.broker.accept(TOPICS.server_status, payload, retain=True)
        world.run(3.0)
        assert (world.told().online, world.told().host) == (True, "hub-a")


def test_a_clock_that_is_set_changes_nothing() -> None:
    world = served()
    for skew in (1e8, -1e8, 0.0):
        world.skew = skew
        world.run(120.0)
        assert (world.who(), world.broker.pushes) == (["a"], 0)


def test_the_lease_asks_before_it_believes_a_retained_word() -> None:
    lease = Lease(ServerStatus(online=True, instance="0a"))
    lease.begin(0.0)
    assert lease.move(0.0, can_speak=True) == "ask"
    lease.hear(ServerStatus(online=True, instance="0b"), 0.1, is_live=False)
    lease.confirm(0.1)
    assert lease.move(0.2, can_speak=True) == ""
    assert lease.move(ANSWER_S, can_speak=True) == "ask"
    assert lease.move(ANSWER_S + 0.2, can_speak=True) == "serve"


def test_its_own_word_that_a_bridge_says_again_is_no_other_server() -> None:
    """Kept by the broker of a site while that of the center was away, it comes as if just said."""
    own = ServerStatus(online=True, instance="a", since=5.0)
    lease = Lease(own)
    lease.begin(0.0)
    lease.confirm(0.1)
    lease.hear(own, 0.2, is_live=True)
    assert lease.state == "looking"
    assert lease.move(ANSWER_S + 1.0, can_speak=True) == "serve"
