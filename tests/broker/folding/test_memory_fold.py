"""Folds whose devices are remembered, against float64 loops of the published formulas."""

from collections.abc import Sequence

import numpy as np
import pytest
from server_world import exact_plan

from broker.config import FoldPolicy
from broker.folding.aggregator import Fold, Offer, fold, rate_of
from broker.folding.memory_fold import Memory, summed, without
from broker.folding.server_step import ServerState
from models.codec.feedback import history_digest
from models.codec.payload import compress, decompress
from models.protocol.learning import LearningPlan
from models.protocol.manifest import CodecPlan
from models.protocol.update import context_in
from models.task.params import Vector
from models.task.spec import Role, TensorSpec

TENSORS = (TensorSpec("a", (20, 3), Role.SHARED), TensorSpec("b", (7,), Role.SHARED))
SIZE = 67
MEMORY = LearningPlan(feedback="memory")
GD_SEC = LearningPlan(feedback="gd-sec", beta=0.25)


class Fleet:
    """Devices by number with what they hold, and the server's state beside a float64 oracle."""

    def __init__(self, plan: LearningPlan, seed: int = 0) -> None:
        self.plan = plan
        self.generator = np.random.default_rng(seed)
        start = self.generator.normal(size=SIZE).astype(np.float32)
        self.state = ServerState(start, start)
        self.server: dict[int, Memory] = {}
        self.held: dict[int, Vector] = {}  # h on the devices
        self.exact = start.astype(np.float64)
        self.histories: dict[int, np.ndarray] = {}
        self.weights: dict[int, float] = {}

    def fold(self, sent: Sequence[tuple[int, Vector, int]], policy: FoldPolicy) -> Fold:
        """Fold (device, delta, samples); devices say D = d - h, and take h over when folded."""
        payloads = []
        offers = []
        for number, (device, delta, samples) in enumerate(sent):
            held = self.held.get(device)
            said = delta if held is None else delta - held
            payloads.append(compress(said, TENSORS, exact_plan()))
            memory = history_digest(held)
            offers.append(Offer(number, 5, samples, plan=self.plan, memory=memory))
        result = fold(
            self.state,
            offers,
            lambda offer: payloads[offer.number],
            TENSORS,
            policy,
            current=7,
            learning=self.plan,
            history_of=lambda offer: self.server.get(sent[offer.number][0]),
            usual=float(np.median([m.samples for m in list(self.server.values())] or [0.0])),
            remember=lambda offer, memory: self.server.update({sent[offer.number][0]: memory}),
        )
        for offer in result.folded:
            device = sent[offer.number][0]
            said = decompress(payloads[offer.number], TENSORS)
            beta = np.float32(1.0 if self.plan.feedback == "memory" else self.plan.beta)
            held = self.held.get(device, np.zeros(SIZE, np.float32))
            self.held[device] = held + beta * said
        if result.state:
            self.state = result.state
        return result

    def oracle(self, sent: Sequence[tuple[int, Vector, int]], rate: float) -> None:
        """The same in float64, from the vectors as decoded: sums over all devices, each time."""
        said = {}
        for device, delta, samples in sent:
            held = self.histories.get(device, np.zeros(SIZE))
            asked = (delta - held.astype(np.float32)).astype(np.float32)
            said[device] = decompress(compress(asked, TENSORS, exact_plan()), TENSORS).astype(float)
            self.histories.setdefault(device, np.zeros(SIZE))
            self.weights[device] = samples
        weight = sum(self.weights.values())
        if self.plan.feedback == "memory":
            for device, c in said.items():
                self.histories[device] = self.histories[device] + c
            total = sum(self.weights[d] * h for d, h in self.histories.items())
        else:
            total = sum(self.weights[d] * h for d, h in self.histories.items())
            total = total + sum(self.weights[d] * c for d, c in said.items())
            for device, c in said.items():
                self.histories[device] = self.histories[device] + self.plan.beta * c
        self.exact = self.exact + rate * total / weight


def sent_by(fleet: Fleet, devices: Sequence[int]) -> list[tuple[int, Vector, int]]:
    grid = fleet.generator.integers(-8, 9, size=(len(devices), SIZE)) / 64  # 256 values at most
    samples = fleet.generator.integers(5, 40, size=len(devices))
    return [(d, grid[i].astype(np.float32), int(samples[i])) for i, d in enumerate(devices)]


@pytest.mark.parametrize("plan", [MEMORY, GD_SEC])
def test_a_fold_is_the_published_step_over_all_that_is_remembered(plan: LearningPlan) -> None:
    fleet = Fleet(plan)
    policy = FoldPolicy(learning_rate=0.5)
    for devices in ([0, 1, 2], [3], [1, 3], [0, 4, 2], [4]):
        sent = sent_by(fleet, devices)
        result = fleet.fold(sent, policy)
        fleet.oracle(sent, 0.5)
        assert len(result.folded) == len(sent)
        np.testing.assert_allclose(fleet.state.exact, fleet.exact, rtol=1e-5, atol=1e-5)
        for device, held in fleet.held.items():
            assert np.array_equal(fleet.server[device].history, held), "the same bits"
        assert fleet.state.remembered is not None
        total = sum(m.samples * m.history.astype(np.float64) for m in fleet.server.values())
        np.testing.assert_allclose(fleet.state.remembered, total, rtol=1e-9, atol=1e-9)
        assert fleet.state.weight == sum(m.samples for m in fleet.server.values())
        assert fleet.state.devices == len(fleet.server)


def test_another_memory_is_refused_and_told_to_begin_anew_and_then_it_may() -> None:
    fleet = Fleet(MEMORY)
    fleet.fold(sent_by(fleet, [0, 1]), FoldPolicy())
    fleet.held[0] = fleet.held[0] + np.float32(1)  # restored from elsewhere
    before = fleet.state
    result = fleet.fold(sent_by(fleet, [0]), FoldPolicy())
    assert [(r.offer.number, r.reason, r.reset) for r in result.refused] == [
        (0, "its memory is not the one here", True)
    ]
    assert (result.state, fleet.state) == (None, before)
    fleet.held[0] = np.zeros(SIZE, np.float32)
    sent = sent_by(fleet, [0])
    fleet.fold(sent, FoldPolicy())
    np.testing.assert_array_equal(fleet.server[0].history, sent[0][1])
    assert fleet.state.devices == 2
    total = sum(m.samples * m.history.astype(np.float64) for m in fleet.server.values())
    np.testing.assert_allclose(fleet.state.remembered, total, rtol=1e-9, atol=1e-9)


def test_a_second_update_of_a_device_in_one_fold_meets_what_the_first_one_left() -> None:
    fleet = Fleet(MEMORY)
    first, second = sent_by(fleet, [0, 0])
    result = fleet.fold([first, second], FoldPolicy())
    assert len(result.folded) == 2, "both were made against nothing: it began anew with the second"
    np.testing.assert_array_equal(fleet.server[0].history, second[1])
    fleet.held[0] = fleet.server[0].history
    result = fleet.fold(sent_by(fleet, [0, 0]), FoldPolicy())
    assert [len(result.folded), len(result.refused)] == [1, 1]
    assert result.refused[0].reset


def test_what_was_made_for_another_feedback_is_refused() -> None:
    nothing = compress(np.ones(SIZE, np.float32), TENSORS, exact_plan())
    zeros = np.zeros(SIZE, np.float32)
    for made, now in [(LearningPlan(), MEMORY), (MEMORY, LearningPlan()), (GD_SEC, MEMORY)]:
        result = fold(
            ServerState(zeros, zeros),
            [Offer(0, 1, 10, plan=made)],
            lambda offer: nothing,
            TENSORS,
            FoldPolicy(),
            current=1,
            learning=now,
        )
        ((_, reason, reset),) = result.refused
        assert (result.state, reset) == (None, False)
        assert f"made for feedback = {made.feedback}" in reason


def test_a_memory_that_grows_beyond_all_measure_is_refused() -> None:
    """Each update alone is short enough."""
    fleet = Fleet(MEMORY)
    fleet.state = fleet.state._replace(exact=np.zeros(SIZE, np.float32))
    step = np.full(SIZE, 6.0, np.float32)
    policy = FoldPolicy(learning_rate=1e-6)  # so that the sum stays where it is
    assert fleet.fold([(0, step, 10)], policy).state
    said = fleet.held[0] + step  # d, so that c is the step again
    result = fleet.fold([(0, said, 10)], policy)
    assert result.state is None
    assert "remembered of it would be" in result.refused[0].reason
    assert not result.refused[0].reset


def test_a_device_weighs_at_most_a_multiple_of_the_others() -> None:
    fleet = Fleet(MEMORY)
    ones = np.ones(SIZE, np.float32)
    fleet.fold([(d, ones, 10) for d in range(5)], FoldPolicy(max_weight=3.0))
    for _ in range(4):
        fleet.fold([(9, -ones, 1 << 50)], FoldPolicy(max_weight=3.0))
        assert fleet.server[9].samples == 30
    assert fleet.state.weight == 80


def test_forgetting_and_summing_anew_lead_to_the_same_sum() -> None:
    fleet = Fleet(MEMORY)
    for devices in ([0, 1, 2, 3], [2, 0]):
        fleet.fold(sent_by(fleet, devices), FoldPolicy())
    gone = without(fleet.state, fleet.server.pop(2))
    anew = summed(fleet.state, fleet.server.values())
    assert (gone.weight, gone.devices) == (anew.weight, anew.devices)
    np.testing.assert_allclose(gone.remembered, anew.remembered, rtol=1e-9, atol=1e-9)
    for memory in list(fleet.server.values()):
        gone = without(gone, memory)
    assert (gone.remembered, gone.weight, gone.devices) == (None, 0.0, 0)
    assert summed(fleet.state, []).remembered is None


def test_the_rate_of_a_memory_follows_how_many_of_all_a_fold_has() -> None:
    rate = FoldPolicy().learning_rate
    assert rate == "auto"
    assert rate_of(FoldPolicy(), LearningPlan(), folded=1, devices=0) == 1
    assert rate_of(FoldPolicy(), MEMORY, folded=5, devices=30) == pytest.approx(0.5)
    assert rate_of(FoldPolicy(), MEMORY, folded=20, devices=30) == 1
    assert rate_of(FoldPolicy(), GD_SEC, folded=1, devices=300) == pytest.approx(0.01)
    assert rate_of(FoldPolicy(updates="all"), GD_SEC, folded=1, devices=300) == 1
    assert rate_of(FoldPolicy(optimizer="yogi"), MEMORY, folded=1, devices=3) == 0.01
    assert rate_of(FoldPolicy(learning_rate=0.7), MEMORY, folded=1, devices=300) == 0.7


def test_an_update_may_be_coded_in_the_memory_that_it_was_made_against() -> None:
    """What names another memory is told so before it is read: only then may it begin anew."""
    fleet = Fleet(MEMORY)
    fleet.fold(sent_by(fleet, [0, 1]), FoldPolicy())
    held = fleet.server[0].history
    asked = fleet.generator.normal(size=SIZE).astype(np.float32)
    payload = compress(asked, TENSORS, CodecPlan(), context=held)
    assert context_in(payload) == history_digest(held)

    def folded(memory: Memory) -> Fold:
        return fold(
            fleet.state,
            [Offer(0, 5, 10, plan=MEMORY, memory=history_digest(held))],
            lambda offer: payload,
            TENSORS,
            FoldPolicy(),
            current=7,
            learning=MEMORY,
            history_of=lambda offer: memory,
            remember=lambda offer, after: fleet.server.update({0: after}),
        )

    assert len(folded(fleet.server[0]).folded) == 1
    said = decompress(payload, TENSORS, context=held)
    assert fleet.server[0].history.tobytes() == (held + said).tobytes()
    (refused,) = folded(fleet.server[1]).refused
    assert refused.reset
