"""The recursion, against loops that know the formulas only; and what both sides must agree on."""

import numpy as np
import pytest

from models.codec.feedback import (
    RECURSIONS,
    Carried,
    Recursion,
    carried_after,
    history_after,
    history_digest,
    taken_back,
    wanted,
)

SIZE = 40


def coarse(asked: np.ndarray) -> np.ndarray:
    """A codec: the three largest values, rounded."""
    said = np.zeros_like(asked)
    kept = np.argsort(-np.abs(asked))[:3]
    said[kept] = np.round(asked[kept], 1)
    return said


def played(name: str, dtype: type, rounds: int = 60) -> list[tuple[np.ndarray, ...]]:
    """Return delta, c, h and e of each round."""
    rng, recursion = np.random.default_rng(3), RECURSIONS[name]
    carried, seen = Carried(), []
    for _ in range(rounds):
        delta = rng.standard_normal(SIZE).astype(dtype)
        asked = wanted(delta, carried)
        said = coarse(asked)
        carried = carried_after(asked, said, carried, recursion)
        zeros = np.zeros(SIZE, dtype)
        owed = zeros if carried.owed is None else carried.owed
        history = zeros if carried.history is None else carried.history
        seen.append((delta, said, history, owed))
    return seen


@pytest.mark.parametrize("name", RECURSIONS)
def test_each_method_is_the_published_recursion(name: str) -> None:
    beta, keeps_owed = RECURSIONS[name]
    history, owed = [0.0] * SIZE, [0.0] * SIZE
    for delta, said, new_history, new_owed in played(name, np.float64):
        for i in range(SIZE):
            asked = float(delta[i]) - history[i] + owed[i]
            history[i] += beta * float(said[i])
            owed[i] = asked - float(said[i]) if keeps_owed else 0.0
        np.testing.assert_allclose(new_history, history, atol=1e-9)
        np.testing.assert_allclose(new_owed, owed, atol=1e-9)


def test_error_feedback_loses_nothing() -> None:
    rounds = played("residual", np.float32)
    learned = sum(delta.astype(np.float64) for delta, *_ in rounds)
    said = sum(said.astype(np.float64) for _, said, *_ in rounds)
    np.testing.assert_allclose(said + rounds[-1][3], learned, rtol=0, atol=1e-3)


def test_the_memory_is_the_share_beta_of_all_that_was_said() -> None:
    for name in ("memory", "gd-sec"):
        rounds = played(name, np.float64)
        said = sum(said for _, said, *_ in rounds)
        np.testing.assert_allclose(rounds[-1][2], RECURSIONS[name].beta * said, atol=1e-9)


def test_types_stay_what_they_are_and_a_server_that_replays_has_the_same_bits() -> None:
    history = None
    for _, said, on_device, owed in played("gd-sec", np.float32):
        history = history_after(history, said, RECURSIONS["gd-sec"].beta)
        assert history.dtype == on_device.dtype == owed.dtype == np.float32
        assert history.tobytes() == on_device.tobytes()
        assert history_digest(history) == history_digest(on_device) != 0


def test_no_memory_and_zeros_have_one_digest_which_is_zero() -> None:
    assert history_digest(None) == history_digest(np.zeros(5, np.float32)) == 0
    assert history_digest(np.ones(5, np.float32)) != history_digest(np.ones(6, np.float32))


def test_what_comes_back_is_owed() -> None:
    said = np.arange(4, dtype=np.float32)
    once = taken_back(said, Carried())
    twice = taken_back(said, once)
    assert once.owed is not None
    assert twice.owed is not None
    np.testing.assert_array_equal(twice.owed, 2 * said)
    assert not Recursion(0.0, keeps_owed=True).has_memory
