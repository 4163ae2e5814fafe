"""What is silent around a device: each kind in a sentence, and none for what passes by itself."""

from collections.abc import Callable

import pytest

from edge_agent.reports.silence import PARTS, Silence
from models.protocol.messages import ServerStatus
from models.transport.link import Disconnected

SERVED = ServerStatus(online=True, tasks=("birds", "clothes"))
AWAY = ServerStatus(online=False, tasks=("birds", "clothes"))
LOST = Disconnected("the connection broke off")


def started() -> Silence:
    silence = Silence(device="cam", task="clothes", fleet="farm")
    silence.started(0.0)
    return silence


def connected(*, manifest: bool = True) -> Silence:
    silence = started()
    silence.connected(0.0)
    if manifest:
        silence.manifest_came()
    return silence


def said(silence: Silence, now: float) -> dict[str, str]:
    found = dict(silence.sentences(now))
    assert found.keys() <= set(PARTS)
    return found


def test_all_is_well_where_a_release_is_announced_and_the_server_says_nothing() -> None:
    """As one of 0.1.0, which does not know `server/status`."""
    assert said(connected(), 1e6) == {}


def test_a_short_outage_is_no_news_and_a_long_one_is() -> None:
    silence = connected()
    silence.disconnected(LOST, 100.0)
    assert said(silence, 129.0) == {}
    assert said(silence, 130.0) == {"broker": "not connected: the connection broke off"}
    silence.connected(140.0)
    assert said(silence, 140.0) == {}


def test_a_reason_that_needs_help_is_said_at_once() -> None:
    silence = started()
    silence.disconnected(Disconnected("wrong password", needs_help=True), 1.0)
    assert said(silence, 1.0) == {"broker": "not connected: wrong password"}


def test_a_link_that_drops_now_and_then_is_no_news() -> None:
    silence = connected()
    for hour in range(1, 50):
        silence.disconnected(LOST, 3600.0 * hour)
        silence.connected(3600.0 * hour + 10)
        silence.manifest_came()
        assert said(silence, 3600.0 * hour + 1800) == {}


@pytest.mark.parametrize(("held_s", "gap_s"), [(21, 3), (25, 5), (40, 40)])
def test_a_link_that_never_comes_to_rest_is_said_once_and_not_with_each_outage(
    held_s: int, gap_s: int
) -> None:
    silence = connected()
    texts = [""]
    for start in range(0, 86_400, held_s + gap_s):
        silence.connected(start)
        silence.manifest_came()
        silence.disconnected(LOST, start + held_s)
        for second in range(gap_s):
            if (text := said(silence, start + held_s + second).get("broker", "")) != texts[-1]:
                texts.append(text)
    assert texts[-1] == "no connection lasts: the connection broke off"
    assert len(texts) < 15  # before it was found out
    silence.connected(90_000.0)
    silence.manifest_came()
    assert said(silence, 90_599.0) != {}
    assert said(silence, 90_600.0) == {}


def test_a_server_that_this_broker_does_not_know_any_more_is_not_taken_to_serve() -> None:
    """As after a broker without persistence was started anew, and the server was not."""
    silence = connected()
    silence.server_said(SERVED, 1.0)
    silence.disconnected(LOST, 100.0)
    silence.connected(101.0)
    assert said(silence, 130.0) == {}
    assert list(said(silence, 131.0)) == ["server"]
    assert said(silence, 131.0)["server"].startswith("nobody serves fleet farm")


def test_connections_that_never_last_are_said_although_each_stood() -> None:
    silence = started()
    for second in range(0, 12, 4):
        silence.connected(second)
        silence.disconnected(LOST, second + 2.0)
    silence.connected(12.0)
    assert said(silence, 12.0)["broker"] == "no connection lasts: the connection broke off"
    assert silence.is_unsteady
    silence.manifest_came()
    assert said(silence, 33.0) == {}


def test_nobody_is_there() -> None:
    silence = connected(manifest=False)
    assert said(silence, 29.0) == {}
    sentence = said(silence, 30.0)["server"]
    assert "nobody serves fleet farm" in sentence
    assert "task clothes" in sentence
    assert "does the broker's ACL let cam read them?" in sentence
    silence.disconnected(LOST, 40.0)
    silence.connected(41.0)
    assert said(silence, 41.0)["server"] == sentence, "a reconnect is no answer"
    silence.manifest_came()
    assert said(silence, 42.0) == {}


def test_a_task_that_is_not_served_is_said_at_once_with_those_that_are() -> None:
    silence = connected(manifest=False)
    silence.server_said(ServerStatus(online=True, tasks=("birds", "shoes")), 1.0)
    assert said(silence, 1.0)["task"].startswith(
        "task clothes is not served in fleet farm; it serves birds, shoes: "
    )
    silence.server_said(SERVED, 2.0)
    assert said(silence, 2.0) == {}


def test_a_release_that_is_not_announced_to_us_is_a_matter_of_the_acl() -> None:
    silence = connected(manifest=False)
    silence.server_said(SERVED, 1.0)
    assert said(silence, 30.0) == {}
    silence.connected(30.5)  # another connection begins nothing anew for the server
    silence.server_said(SERVED, 30.6)
    assert "task/clothes/release" in said(silence, 60.5)["task"]


def test_a_server_that_comes_after_its_devices_is_given_the_time_to_announce_a_release() -> None:
    silence = connected(manifest=False)
    assert "server" in said(silence, 100.0)
    silence.server_said(SERVED, 200.0)
    assert said(silence, 200.0) == {}
    assert silence.next_at(200.0) == 230.0
    assert "task/clothes/release" in said(silence, 230.0)["task"]
    silence.manifest_came()
    assert said(silence, 231.0) == {}


def test_a_server_that_is_started_anew_is_no_news_and_one_that_stays_away_is() -> None:
    silence = connected()
    silence.server_said(SERVED, 1.0)
    silence.server_said(AWAY, 100.0)
    assert said(silence, 144.0) == {}
    silence.server_said(SERVED, 144.0)
    assert said(silence, 200.0) == {}
    silence.server_said(AWAY, 300.0)
    silence.server_said(AWAY, 340.0)  # the same, after a reconnect
    assert said(silence, 345.0) == {
        "server": "the server of fleet farm is away; what is for it waits here"
    }
    silence.server_said(None, 400.0)  # its status was cleared
    assert said(silence, 400.0) == {}


def test_permissions_are_listed_until_they_are_given() -> None:
    silence = connected()
    silence.may_read("task/clothes/release", "Not authorized")
    silence.may_write("device/cam/status", "Not authorized")
    assert said(silence, 1.0)["permission"] == (
        "the broker refuses to let this device read task/clothes/release and write "
        "device/cam/status: its ACL must allow that to cam (Not authorized)"
    )
    silence.may_read("task/clothes/release", "")
    silence.may_write("device/cam/status", "")
    assert said(silence, 2.0) == {}


Change = Callable[[Silence], None]


@pytest.mark.parametrize(
    "change",
    [
        lambda silence: silence.disconnected(LOST, 5.0),
        lambda silence: silence.server_said(AWAY, 5.0),
        lambda silence: None,
    ],
    ids=["offline", "server away", "nobody"],
)
def test_it_knows_when_it_will_have_more_to_say(change: Change) -> None:
    """An agent sleeps until then: what it said a tick later would come too late."""
    silence = connected(manifest=False)
    if change is not None:
        change(silence)
    now, told = 5.0, said(silence, 5.0)
    for _ in range(10):
        due = silence.next_at(now)
        before = said(silence, due - 0.01)
        assert before == told
        now, told = due, said(silence, due)
    assert told


def test_sentences_do_not_change_with_time() -> None:
    """Each change is a line in the log, and a message to the server."""
    silence = started()
    for minute in range(60 * 24 * 30):
        silence.disconnected(Disconnected("nothing listens there"), 60.0 * minute)
    assert len({said(silence, 60.0 * m)["broker"] for m in range(10, 60 * 24 * 30, 97)}) == 1


def test_a_server_is_back_when_it_says_so_for_the_first_time_since_we_did_not_know() -> None:
    silence = connected()
    assert silence.server_said(SERVED, 1.0)
    assert not silence.server_said(SERVED, 2.0)
    assert not silence.server_said(AWAY, 3.0)
    assert silence.server_said(SERVED, 4.0)
    assert not silence.server_said(None, 5.0)
    silence.disconnected(LOST, 6.0)
    silence.connected(7.0)
    assert silence.server_said(SERVED, 8.0)
    other = ServerStatus(online=True, instance="b", tasks=SERVED.tasks)
    assert silence.server_said(other, 9.0)
