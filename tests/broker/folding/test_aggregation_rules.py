"""The rules against second implementations in plain numpy, and the properties all must have."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import RULE_NAMES
from broker.folding import aggregation_rules
from broker.folding.aggregation_rules import RULES, Contribution, clipped_mean, mean, trimmed_mean


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


@pytest.mark.parametrize("name", RULES)
@given(given_ones=contributions())
def test_a_step_lies_between_the_damped_deltas(name: str, given_ones: list[Contribution]) -> None:
    step = RULES[name](iter(given_ones))
    damped = np.stack([c.delta * np.float32(c.damping) for c in given_ones])
    slack = 1e-4 * np.abs(damped).max()
    assert step.dtype == np.float32
    assert (step <= np.maximum(damped.max(axis=0), 0) + slack).all()
    assert (step >= np.minimum(damped.min(axis=0), 0) - slack).all()


@pytest.mark.parametrize("name", RULES)
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


def test_the_mean_holds_one_delta_at_a_time() -> None:
    alive: list[weakref.ref[object]] = []

    def stream() -> Iterator[Contribution]:
        for _ in range(5):
            delta = np.ones(4, np.float32)
            alive.append(weakref.ref(delta))
            yield Contribution(delta, 1.0, 1.0)
            del delta
            assert sum(reference() is not None for reference in alive) <= 1

    mean(stream())
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


def test_long_vectors_are_trimmed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    many = [
        Contribution(generator.normal(size=1000).astype(np.float32), generator.uniform(1, 9), 0.5)
        for _ in range(7)
    ]
    whole = trimmed_mean(many)
    monkeypatch.setattr(aggregation_rules, "BLOCK", 64)
    np.testing.assert_array_equal(trimmed_mean(many), whole)


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
