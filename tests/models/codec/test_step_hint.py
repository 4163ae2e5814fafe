"""The step of a sender's last payload, tried first: fewer drafts, and the budget is still kept."""

import math

import numpy as np
import pytest

import models.codec.budget
from models.codec.budget import Budget
from models.codec.payload import Compressed, compress, compressed, decompress
from models.codec.transform.frame import draft_frame
from models.protocol.manifest import CodecPlan
from models.task.params import Vector
from models.task.spec import Role, TensorSpec

TENSORS = (
    TensorSpec("w", (60, 400), Role.SHARED),
    TensorSpec("b", (60,), Role.SHARED),
    TensorSpec("v", (10, 60), Role.SHARED),
)
SIZE = sum(tensor.size for tensor in TENSORS)


@pytest.fixture
def drafts(monkeypatch) -> list[float]:
    """The steps that were tried."""
    tried: list[float] = []

    def counted(delta, step, *rest, **options):
        tried.append(step)
        return draft_frame(delta, step, *rest, **options)

    monkeypatch.setattr(models.codec.budget, "draft_frame", counted)
    return tried


def delta_of(round_: int) -> Vector:
    """A few directions that stay, and noise that does not."""
    stays, fresh = np.random.default_rng(0), np.random.default_rng(100 + round_)
    right = stays.normal(size=(5, 400)) * np.array([[4], [3], [2], [1.5], [1]])
    w = fresh.normal(size=(60, 5)) @ right + fresh.normal(size=(60, 400)) * 0.5
    rest = fresh.normal(size=SIZE - w.size)
    return (np.concatenate([w.reshape(-1), rest]) * 0.01).astype(np.float32)


def nmse(wanted: Vector, payload: bytes) -> float:
    missed = wanted.astype(np.float64) - decompress(payload, TENSORS)
    return float(np.square(missed).sum() / np.square(wanted.astype(np.float64)).sum())


def course(budget: Budget, rounds: int, *, hinted: bool) -> list[tuple[Vector, Compressed]]:
    """Error feedback: what was wanted and what was said."""
    owed, hint, found = np.zeros(SIZE, np.float32), None, []
    for number in range(rounds):
        wanted = delta_of(number) + owed
        said = compressed(wanted, TENSORS, budget, hint=hint if hinted else None)
        owed, hint = wanted - decompress(said.payload, TENSORS), said.step
        found.append((wanted, said))
    return found


@pytest.mark.parametrize("most", [150, 400, 1000, 3000])
def test_with_a_hint_a_budget_of_bytes_is_kept_and_used_in_fewer_drafts(most, drafts) -> None:
    plain = course(Budget(bytes=most), 12, hinted=False)
    searched = len(drafts)
    drafts.clear()
    found = course(Budget(bytes=most), 12, hinted=True)
    assert len(drafts) < 0.7 * searched
    assert all(len(said.payload) <= most for _, said in (*plain, *found))
    used, most_used = (np.mean([len(said.payload) for _, said in c]) for c in (found, plain))
    assert used > 0.8 * most_used


@pytest.mark.parametrize("wanted", [0.05, 0.3, 0.6])
def test_with_a_hint_the_error_is_within_a_tenth(wanted: float, drafts) -> None:
    course(Budget(nmse=wanted), 10, hinted=False)
    searched = len(drafts)
    drafts.clear()
    found = course(Budget(nmse=wanted), 10, hinted=True)
    assert len(drafts) < 0.8 * searched
    for delta, said in found:
        assert nmse(delta, said.payload) <= 1.12 * wanted  # an estimate that is good to a hundredth


def test_at_equal_bytes_a_hinted_payload_says_as_much_as_a_searched_one() -> None:
    ratios = []
    for wanted, said in course(Budget(bytes=800), 8, hinted=True)[1:]:
        searched = compress(wanted, TENSORS, Budget(bytes=len(said.payload)))
        ratios.append(nmse(wanted, said.payload) / nmse(wanted, searched))
    assert np.mean(ratios) < 1.03


@pytest.mark.parametrize("hint", [1e-320, 1e-30, 1e-6, 0.003, 10.0, 1e30, 3e38])
@pytest.mark.parametrize("budget", [Budget(bytes=400), Budget(nmse=0.3), Budget(bytes=9)])
def test_a_wild_hint_does_no_harm(hint: float, budget: Budget) -> None:
    wanted = delta_of(0)
    said = compressed(wanted, TENSORS, budget, hint=hint)
    if budget.bytes is not None:
        assert len(said.payload) <= budget.bytes
    if budget.nmse is not None:
        assert nmse(wanted, said.payload) <= 1.12 * budget.nmse
    plain = compress(wanted, TENSORS, budget)
    assert nmse(wanted, said.payload) <= 1.12 * nmse(wanted, plain)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
def test_a_hint_follows_a_delta_of_another_scale(scale: float) -> None:
    said = compressed(delta_of(0), TENSORS, Budget(bytes=500))
    other = (delta_of(1) * scale).astype(np.float32)
    found = compressed(other, TENSORS, Budget(bytes=500), hint=said.step)
    assert 300 <= len(found.payload) <= 500
    assert found.step == pytest.approx(said.step * scale, rel=0.3)


def test_room_for_everything_is_used_without_a_search(drafts) -> None:
    first = compressed(delta_of(0), TENSORS, Budget(bytes=10**6))
    drafts.clear()
    second = compressed(delta_of(1), TENSORS, Budget(bytes=10**6), hint=first.step)
    assert len(drafts) <= 4
    assert nmse(delta_of(1), second.payload) < 1e-4


@pytest.mark.parametrize("hint", [0.0, -1.0, math.nan, math.inf])
def test_a_hint_is_a_positive_finite_step(hint: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        compressed(delta_of(0), TENSORS, Budget(bytes=500), hint=hint)


def test_without_a_step_there_is_nothing_to_remember() -> None:
    zeros = np.zeros(SIZE, np.float32)
    assert compressed(zeros, TENSORS, CodecPlan(), hint=0.1).step is None
    assert compressed(delta_of(0), TENSORS, CodecPlan(method="coreset")).step is None


@pytest.mark.parametrize("plan", [CodecPlan(), CodecPlan(bytes=700), CodecPlan(method="coreset")])
def test_compress_is_the_payload_of_compressed(plan: CodecPlan) -> None:
    assert compress(delta_of(3), TENSORS, plan) == compressed(delta_of(3), TENSORS, plan).payload
