"""The rules against second implementations in plain numpy, and the properties all must have."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import RULE_NAMES
from broker.folding import aggregation_rules
from broker.folding.aggregation_rules import (
    RULES,
    STREAMING,
    Contribution,
    clipped_mean,
    mean,
    median,
    mix,
    multi_krum,
    norm,
    rule_for,
    trimmed_mean,
)

IN_ANY_ORDER = sorted(set(RULES) - {"mix"})
ROBUST = ("clipped_mean", "trimmed_mean", "median", "multi_krum")


@st.composite
def contributions(draw: st.DrawFn, *, least: int = 1) -> list[Contribution]:
    """Up to a dozen sparse deltas, with ties."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, size = draw(st.integers(least, 12)), draw(st.integers(1, 9))
    scale, digits = 10.0 ** draw(st.integers(-3, 3)), draw(st.integers(0, 3))
    deltas = (generator.normal(0, 1, (count, size)).round(digits) * scale).astype(np.float32)
    deltas *= generator.random((count, size)) < draw(st.sampled_from([0.2, 1.0]))
    return [
        Contribution(delta, float(generator.integers(1, 500)), float(generator.uniform(0.01, 1)))
        for delta in deltas
    ]


def test_the_settings_name_every_rule() -> None:
    assert set(RULE_NAMES) == set(RULES)


@pytest.mark.parametrize("name", IN_ANY_ORDER)
@given(given_ones=contributions())
def test_a_step_lies_between_the_damped_deltas(name: str, given_ones: list[Contribution]) -> None:
    step = RULES[name](iter(given_ones))
    damped = np.stack([c.delta * np.float32(c.damping) for c in given_ones])
    slack = 1e-4 * np.abs(damped).max()
    assert step.dtype == np.float32
    assert (step <= np.maximum(damped.max(axis=0), 0) + slack).all()
    assert (step >= np.minimum(damped.min(axis=0), 0) - slack).all()


@pytest.mark.parametrize("name", IN_ANY_ORDER)
@given(given_ones=contributions(), seed=st.integers(0, 100))
def test_the_order_of_arrival_does_not_matter(
    name: str, given_ones: list[Contribution], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(given_ones))
    shuffled = [given_ones[i] for i in order]
    np.testing.assert_allclose(RULES[name](given_ones), RULES[name](shuffled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_equal_deltas_are_their_own_result(name: str) -> None:
    delta = np.array([1.0, -2.0, 0.0], np.float32)
    same = [Contribution(delta, weight, 1.0) for weight in (1.0, 5.0, 3.0, 2.0)]
    np.testing.assert_allclose(RULES[name](same), delta, rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_nothing_cannot_be_folded(name: str) -> None:
    with pytest.raises(ValueError, match="no contribution"):
        RULES[name]([])


@given(given_ones=contributions())
def test_mean_is_the_formula_of_fedbuff(given_ones: list[Contribution]) -> None:
    weights = np.array([c.weight for c in given_ones])
    damped = np.array([c.weight * c.damping for c in given_ones])
    deltas = np.stack([c.delta for c in given_ones]).astype(np.float64)
    np.testing.assert_allclose(
        mean(given_ones), damped @ deltas / weights.sum(), rtol=1e-5, atol=1e-5
    )


def test_old_updates_alone_make_a_small_step() -> None:
    delta = np.ones(3, np.float32)
    assert mean([Contribution(delta, 7.0, 0.25)] * 3)[0] == pytest.approx(0.25)


@pytest.mark.parametrize("name", sorted(STREAMING))
def test_a_rule_that_streams_holds_one_delta_at_a_time(name: str) -> None:
    alive: list[weakref.ref[object]] = []

    def stream() -> Iterator[Contribution]:
        for _ in range(5):
            delta = np.ones(4, np.float32)
            alive.append(weakref.ref(delta))
            yield Contribution(delta, 1.0, 1.0)
            del delta
            assert sum(reference() is not None for reference in alive) <= 1

    RULES[name](stream())
    assert len(alive) == 5


@given(given_ones=contributions(least=3))
def test_trimmed_mean_leaves_out_both_ends_of_each_coordinate(
    given_ones: list[Contribution],
) -> None:
    step = trimmed_mean(given_ones)
    trimmed = max(1, int(len(given_ones) * 0.2))
    for i in range(step.size):
        ranked = sorted((np.float32(c.damping) * c.delta[i], c.weight) for c in given_ones)
        kept = ranked[trimmed : len(ranked) - trimmed]
        expected = sum(float(value) * weight for value, weight in kept)
        expected /= sum(weight for _, weight in kept)
        assert step[i] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_one_liar_among_five_cannot_move_the_trimmed_mean_far() -> None:
    honest = [Contribution(np.array([value], np.float32), 1.0, 1.0) for value in (1, 2, 3, 4)]
    liar = Contribution(np.array([1e6], np.float32), 1.0, 1.0)
    assert trimmed_mean([*honest, liar])[0] == pytest.approx(3.0)
    assert mean([*honest, liar])[0] > 1e5


def test_a_coordinate_that_few_sent_does_not_move_under_the_trimmed_mean() -> None:
    """The caveat of its docstring: sparse deltas."""
    silent = [Contribution(np.zeros(1, np.float32), 1.0, 1.0)] * 4
    assert trimmed_mean([*silent, Contribution(np.ones(1, np.float32), 1.0, 1.0)])[0] == 0


@pytest.mark.parametrize("name", ["trimmed_mean", "median", "multi_krum"])
def test_long_vectors_are_worked_on_block_by_block(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(5)
    many = [
        Contribution(generator.normal(size=1000).astype(np.float32), generator.uniform(1, 9), 0.5)
        for _ in range(7)
    ]
    whole = RULES[name](many)
    monkeypatch.setattr(aggregation_rules, "BLOCK", 64)
    np.testing.assert_array_equal(RULES[name](many), whole)


@given(given_ones=contributions())
def test_clipped_mean_shortens_to_the_median_norm(given_ones: list[Contribution]) -> None:
    deltas = [c.delta.astype(np.float64) for c in given_ones]
    norms = np.array([np.sqrt((delta**2).sum()) for delta in deltas])
    limit = np.median(norms[norms > 0]) if (norms > 0).any() else 0.0
    total = sum(
        c.weight * c.damping * delta * min(1.0, limit / max(norm, 1e-300))
        for c, delta, norm in zip(given_ones, deltas, norms, strict=True)
    )
    expected = total / sum(c.weight for c in given_ones)
    np.testing.assert_allclose(clipped_mean(given_ones), expected, rtol=1e-4, atol=1e-4)


@given(given_ones=contributions())
def test_the_median_is_the_middle_of_each_coordinate_whatever_it_weighs(
    given_ones: list[Contribution],
) -> None:
    """Yin et al. 2018, definition 1."""
    step = median(given_ones)
    for i in range(step.size):
        ranked = sorted(float(np.float32(c.damping) * c.delta[i]) for c in given_ones)
        low, high = ranked[(len(ranked) - 1) // 2], ranked[len(ranked) // 2]
        assert step[i] == pytest.approx((low + high) / 2, rel=1e-6, abs=1e-30)


def krum_by_hand(given_ones: list[Contribution]) -> list[float]:
    """The scores of Blanchard et al. 2017: sums over the n - f - 2 nearest others."""
    count = len(given_ones)
    nearest = count - count // 5 - 2
    scores = []
    for i, one in enumerate(given_ones):
        squares = sorted(
            sum((float(a) - float(b)) ** 2 for a, b in zip(one.delta, other.delta, strict=True))
            for j, other in enumerate(given_ones)
            if i != j
        )
        scores.append(sum(squares[:nearest]))
    return scores


@given(given_ones=contributions(least=3), seed=st.integers(0, 2**32))
def test_multi_krum_averages_those_with_the_lowest_scores(
    given_ones: list[Contribution], seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(size=(len(given_ones), given_ones[0].delta.size))
    apart = [
        c._replace(delta=(c.delta + n * (1e-3 + np.abs(c.delta).max())).astype(np.float32))
        for c, n in zip(given_ones, noise, strict=True)
    ]  # no two scores are alike
    scores = krum_by_hand(apart)
    taken = np.argsort(scores)[: len(apart) - len(apart) // 5]
    expected = sum(
        apart[i].weight * apart[i].damping * apart[i].delta.astype(np.float64) for i in taken
    ) / sum(apart[i].weight for i in taken)
    np.testing.assert_allclose(multi_krum(apart), expected, rtol=1e-4, atol=1e-6)


@given(given_ones=contributions())
def test_multi_krum_of_too_few_is_the_clipped_mean(given_ones: list[Contribution]) -> None:
    few = given_ones[:2]
    assert rule_for("multi_krum", len(few)) == "clipped_mean"
    np.testing.assert_array_equal(multi_krum(few), clipped_mean(few))


@pytest.mark.parametrize("count", range(1, 200))
def test_who_says_which_rule_it_comes_down_to_knows_the_papers_bound(count: int) -> None:
    is_enough = count >= 2 * (count // 5) + 3
    assert rule_for("multi_krum", count) == ("multi_krum" if is_enough else "clipped_mean")
    assert all(rule_for(name, count) == name for name in set(RULES) - {"multi_krum"})


def honest_and_liars(lie: str, count: int, liars: int) -> tuple[list[Contribution], np.ndarray]:
    """Honest deltas around one direction, and liars who know what all others said."""
    generator = np.random.default_rng(11)
    truth = generator.normal(size=500)
    honest = [truth + generator.normal(scale=0.5, size=500) for _ in range(count - liars)]
    spread = np.std(honest, axis=0)
    lies = {
        "loud": -1000 * truth,
        "backwards": -truth,
        "one coordinate": truth + 1e4 * (np.arange(500) == 7),
        "hidden": np.mean(honest, axis=0) - 1.5 * spread,  # Baruch et al. 2019: a little is enough
    }[lie]
    deltas = [delta.astype(np.float32) for delta in (*honest, *[lies] * liars)]
    mixed = generator.permutation(count)
    return [Contribution(deltas[i], 1.0, 1.0) for i in mixed], np.mean(honest, axis=0)


@pytest.mark.parametrize("lie", ["loud", "backwards", "one coordinate", "hidden"])
@pytest.mark.parametrize("name", ROBUST)
def test_a_fifth_of_liars_does_not_turn_a_robust_rule(name: str, lie: str) -> None:
    given_ones, truth = honest_and_liars(lie, 20, 4)
    step = RULES[name](given_ones).astype(np.float64)
    assert step @ truth > 0.5 * norm(truth) ** 2
    assert norm(step - truth) < 0.5 * norm(truth)


@pytest.mark.parametrize("lie", ["loud", "one coordinate"])
def test_the_mean_believes_the_same_liars(lie: str) -> None:
    given_ones, truth = honest_and_liars(lie, 20, 4)
    assert norm(mean(given_ones) - truth) > 5 * norm(truth)


@pytest.mark.parametrize("lie", ["loud", "one coordinate"])
def test_multi_krum_leaves_out_liars_that_agree_with_each_other(lie: str) -> None:
    given_ones, truth = honest_and_liars(lie, 20, 4)
    np.testing.assert_allclose(multi_krum(given_ones), truth, rtol=1e-4, atol=1e-6)


def test_nine_of_twenty_liars_cannot_move_the_median_out_of_the_honest_values() -> None:
    given_ones, _ = honest_and_liars("loud", 20, 9)
    honest = np.stack([c.delta for c in given_ones if norm(c.delta) < 1000])
    step = median(given_ones)
    assert (step <= honest.max(axis=0)).all()
    assert (step >= honest.min(axis=0)).all()


def test_who_says_that_he_weighs_the_world_does_not_move_the_median() -> None:
    honest = [Contribution(np.array([v], np.float32), 1.0, 1.0) for v in (1, 2, 3, 4)]
    assert median([*honest, Contribution(np.array([99], np.float32), 1e15, 1.0)])[0] == 3.0


@given(given_ones=contributions())
def test_mix_goes_toward_one_model_after_the_other(given_ones: list[Contribution]) -> None:
    """FedAsync, algorithm 1, around an x that is not zero."""
    x = before = np.linspace(-3, 3, given_ones[0].delta.size)
    for c in given_ones:
        theirs = before + c.delta.astype(np.float64)  # delta: p_base + d - x
        x = (1 - c.damping) * x + c.damping * theirs
    np.testing.assert_allclose(mix(given_ones), x - before, rtol=1e-4, atol=1e-5)


def test_what_came_last_counts_most_under_mix() -> None:
    ones = [Contribution(np.array([v], np.float32), 1.0, 0.5) for v in (1.0, 0.0)]
    assert mix(ones)[0] == pytest.approx(0.25)
    assert mix(ones[::-1])[0] == pytest.approx(0.5)
