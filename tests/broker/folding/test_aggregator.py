"""When to fold, and a whole fold against plain numpy."""

import hashlib

import numpy as np
import pytest
from server_world import exact_plan

from broker.config import FoldPolicy
from broker.folding.aggregator import Offer, due_at, fold, most_at_once
from broker.folding.server_step import ServerState
from broker.two_clocks import moment_of
from models.codec.payload import compress
from models.task.params import Vector
from models.task.spec import Role, TensorSpec

TENSORS = (TensorSpec("a", (20, 3), Role.SHARED), TensorSpec("b", (7,), Role.SHARED))
SIZE = 67


def state(exact: Vector) -> ServerState:
    return ServerState(exact, exact)


def payload(delta: Vector) -> bytes:
    return compress(delta, TENSORS, exact_plan())


def test_a_fold_is_fedbuff_with_samples_and_staleness() -> None:
    generator = np.random.default_rng(0)
    parameters = generator.normal(size=SIZE).astype(np.float32)
    deltas = [generator.normal(size=SIZE).astype(np.float32) for _ in range(4)]
    offers = [
        Offer(i, base, samples)
        for i, (base, samples) in enumerate([(9, 100), (7, 50), (5, 10), (9, 25)])
    ]
    policy = FoldPolicy(half_life=2, learning_rate=0.5)
    result = fold(
        state(parameters), offers, lambda o: payload(deltas[o.number]), TENSORS, policy, current=9
    )
    weights = np.array([100, 50, 10, 25], np.float64)
    damped = np.array([1, 0.5, 0.25, 1])
    expected = parameters + 0.5 * (weights * damped) @ np.stack(deltas) / weights.sum()
    np.testing.assert_allclose(result.exact, expected, rtol=1e-5, atol=1e-6)
    assert (result.folded, result.refused) == (tuple(offers), ())


def test_one_device_cannot_outweigh_all_others_by_a_large_number() -> None:
    deltas = [np.full(SIZE, value, np.float32) for value in (1.0, 1.0, -1.0)]
    offers = [Offer(0, 1, 10), Offer(1, 1, 10), Offer(2, 1, 1 << 53)]
    result = fold(
        state(np.zeros(SIZE, np.float32)),
        offers,
        lambda o: payload(deltas[o.number]),
        TENSORS,
        FoldPolicy(max_weight=2.0),
        current=1,
    )
    assert result.exact is not None
    assert result.exact[0] == pytest.approx((10 + 10 - 20) / 40)


@pytest.mark.parametrize(
    ("base", "bad", "reason"),
    [
        (5, b"\x00not a payload", "payload"),
        (5, b"", "payload"),
        (6, payload(np.ones(SIZE, np.float32)), "the newest here is 5"),
        (1, payload(np.ones(SIZE, np.float32)), "4 releases old"),
        (5, payload(np.full(SIZE, 1e30, np.float32)), "long"),
        (5, payload(np.full(SIZE, 3e38, np.float32)), "long"),
    ],
)
def test_what_cannot_be_folded_is_refused_and_the_others_are_folded(
    base: int, bad: bytes, reason: str
) -> None:
    good = payload(np.ones(SIZE, np.float32))
    offers = [Offer(0, 5, 10), Offer(1, base, 10), Offer(2, 5, 30)]
    result = fold(
        state(np.zeros(SIZE, np.float32)),
        offers,
        lambda o: bad if o.number == 1 else good,
        TENSORS,
        FoldPolicy(max_staleness=3),
        current=5,
    )
    assert [offer.number for offer in result.folded] == [0, 2]
    ((refused, why, _),) = result.refused
    assert refused.number == 1
    assert reason in why
    np.testing.assert_allclose(result.exact, 1.0)


def test_a_fold_of_nothing_but_refused_updates_changes_nothing() -> None:
    result = fold(
        state(np.zeros(SIZE, np.float32)),
        [Offer(0, 1, 1)],
        lambda o: b"?",
        TENSORS,
        FoldPolicy(),
        current=1,
    )
    assert result.exact is None
    assert len(result.refused) == 1


def test_a_sum_beyond_float32_is_refused_as_a_whole() -> None:
    parameters = np.full(SIZE, 3e38, np.float32)
    big = payload(np.full(SIZE, 3e38, np.float32))
    result = fold(
        state(parameters), [Offer(0, 1, 1)], lambda o: big, TENSORS, FoldPolicy(), current=1
    )
    assert result.exact is None
    assert "not finite" in result.refused[0][1]


def test_the_same_updates_give_the_same_bytes() -> None:
    """A fold that a crash interrupted is made again, and its artifact has the same name."""
    generator = np.random.default_rng(1)
    deltas = [payload(generator.normal(size=SIZE).astype(np.float32)) for _ in range(9)]
    offers = [Offer(i, 1, 1 + i) for i in range(9)]
    digests = set()
    for _ in range(3):
        result = fold(
            state(np.ones(SIZE, np.float32)),
            offers,
            lambda o: deltas[o.number],
            TENSORS,
            FoldPolicy(),
            current=1,
        )
        assert result.exact is not None
        digests.add(hashlib.sha256(result.exact.tobytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("waiting", "first_at", "now", "expected"),
    [
        (0, 0.0, 100.0, None),
        (1, 100.0, 100.0, 160.0),
        (1, 40.0, 100.0, 100.0),
        (9, 100.0, 100.0, 160.0),
        (10, 100.0, 100.0, 100.0),
        (1, 5000.0, 100.0, 100.0),  # the clock was set back
    ],
)
def test_a_fold_is_due_by_count_or_by_age(
    waiting: int, first_at: float, now: float, expected: float | None
) -> None:
    policy = FoldPolicy(updates=10, seconds=60)
    first = moment_of(first_at, now=now, wall=now)
    assert due_at(policy, waiting=waiting, first_at=first, now=now) == expected


@pytest.mark.parametrize(
    ("waiting", "folded_at", "expected"),
    [
        (0, 50.0, None),
        (10, None, 1000.0),  # the first fold waits for nothing
        (10, 900.0, 1500.0),
        (10, 300.0, 1000.0),
        (1, 900.0, 1500.0),
        (1, 300.0, 1030.0),
        (10, 5000.0, 1000.0),  # the clock was set back
    ],
)
def test_folds_keep_their_distance(
    waiting: int, folded_at: float | None, expected: float | None
) -> None:
    policy = FoldPolicy(updates=10, seconds=60, min_seconds=600)
    if folded_at is not None:
        folded_at = moment_of(folded_at, now=1000.0, wall=1000.0)
    found = due_at(policy, waiting=waiting, first_at=970.0, now=1000.0, folded_at=folded_at)
    assert found == expected


def test_what_waited_already_at_the_last_fold_is_due_at_once() -> None:
    policy = FoldPolicy(updates=10, seconds=60, min_seconds=600)
    for is_resting in (False, True):
        left = {"waiting": 1, "now": 1000.0, "folded_at": 990.0, "is_resting": is_resting}
        assert due_at(policy, first_at=989.0, **left) == 1000.0  # type: ignore[arg-type]
        assert due_at(policy, first_at=990.0, **left) != 1000.0  # type: ignore[arg-type]


def test_rules_that_need_all_deltas_take_no_more_than_memory_allows() -> None:
    assert most_at_once(FoldPolicy(rule="trimmed_mean"), 1 << 20) == 32
    assert most_at_once(FoldPolicy(rule="trimmed_mean", updates=200), 1 << 20) == 200
    assert most_at_once(FoldPolicy(rule="mean"), 1 << 28) == 10_000


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'mode' is none of mean, trimmed_mean, clipped_mean"):
        FoldPolicy(rule="mode")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "mix"}, "rule = mix is FedAsync: updates = 1, not 10"),
        ({"rule": "mix", "updates": "all"}, "rule = mix is FedAsync: updates = 1, not all"),
        ({"rule": "mix", "updates": 1, "optimizer": "adam"}, "optimizer = sgd, not adam"),
        ({"rule": "mix", "updates": 1, "learning_rate": 1.5}, "at most 1, not 1.5"),
        ({"rule": "multi_krum", "updates": 1001}, "updates = 1001, at most 1000"),
    ],
)
def test_what_a_rule_cannot_do_is_refused(settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FoldPolicy(**settings)


def test_multi_krum_compares_no_more_than_a_thousand_at_once() -> None:
    assert most_at_once(FoldPolicy(rule="multi_krum"), 100) == 1000
    assert most_at_once(FoldPolicy(rule="multi_krum"), 1 << 20) == 32


@pytest.mark.parametrize("settings", [{}, {"learning_rate": 0.9, "staleness": "polynomial"}])
def test_a_mixed_fold_is_fedasync_one_update_after_the_other(settings) -> None:
    generator = np.random.default_rng(2)
    x, p = (generator.normal(size=SIZE).astype(np.float32) for _ in range(2))
    bases = {number: generator.normal(size=SIZE).astype(np.float32) for number in (7, 8, 9)}
    deltas = [generator.normal(size=SIZE).astype(np.float32) for _ in range(4)]
    offers = [Offer(i, base, 1 + 9 * i) for i, base in enumerate((9, 7, 9, 8))]
    result = fold(
        ServerState(x, p),
        offers,
        lambda o: payload(deltas[o.number]),
        TENSORS,
        FoldPolicy(rule="mix", updates=1, half_life=2, **settings),
        current=9,
        published_of=lambda o: bases[o.base],
    )
    alpha = settings.get("learning_rate", 0.6)
    ages = {9: 0, 8: 1, 7: 2}
    s = {0: 1.0, 1: 2**-0.5, 2: 3**-0.5} if settings else {0: 1.0, 1: 2**-0.5, 2: 0.5}
    expected = x.astype(np.float64)
    for offer, delta in zip(offers, deltas, strict=True):
        share = alpha * s[ages[offer.base]]  # from alpha each time: it does not wear out
        expected = (1 - share) * expected + share * (bases[offer.base] + delta.astype(np.float64))
    np.testing.assert_allclose(result.exact, expected, rtol=1e-5, atol=1e-5)


def test_mix_refuses_what_was_trained_on_a_release_that_is_not_kept() -> None:
    zeros = np.zeros(SIZE, np.float32)
    result = fold(
        ServerState(zeros, zeros),
        [Offer(0, 3, 1)],
        lambda o: payload(np.ones(SIZE, np.float32)),
        TENSORS,
        FoldPolicy(rule="mix", updates=1),
        current=9,
    )
    assert result.state is None
    assert "release 3, which it was trained on, is not kept" in result.refused[0].reason


def test_a_poisoned_fold_moves_on_by_what_the_honest_say() -> None:
    """Of ten one is ten thousand times too long: refused. One is within the limit: outvoted."""
    generator = np.random.default_rng(4)
    honest = [generator.normal(1.0, 0.1, SIZE).astype(np.float32) for _ in range(8)]
    zeros = np.zeros(SIZE, np.float32)
    deltas = [*honest, np.full(SIZE, -1e4, np.float32), np.full(SIZE, -9.0, np.float32)]
    for rule in ("median", "multi_krum", "trimmed_mean", "clipped_mean", "mean"):
        result = fold(
            ServerState(zeros, zeros),
            [Offer(i, 1, 1) for i in range(10)],
            lambda o: payload(deltas[o.number]),
            TENSORS,
            FoldPolicy(rule=rule),
            current=1,
        )
        assert [refusal.offer.number for refusal in result.refused] == [8]
        assert result.exact is not None
        turned = (result.exact < 0.7).any()
        assert turned == (rule == "mean"), rule


def test_a_fold_of_all_is_due_when_everybody_is_here_or_the_time_is_over() -> None:
    policy = FoldPolicy(updates="all", seconds=60, min_seconds=0)
    assert due_at(policy, waiting=3, first_at=100.0, now=110.0) == 160.0
    assert due_at(policy, waiting=1, first_at=100.0, now=110.0, is_everybody_here=True) == 110.0
    assert due_at(policy, waiting=0, first_at=None, now=110.0, is_everybody_here=True) is None
    assert most_at_once(policy, 1 << 20) == 10_000
