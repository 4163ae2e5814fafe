"""The published comparison: data dealt as described, one client's training as torch's."""

import numpy as np
import pytest
import torch
from torch import nn

from models.nets.catalog import build_net
from models.task.params import flatten, unflatten
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset
from tools.experiments.arena import Arena, Member
from tools.experiments.niid import ARMS, CELLS, CLIENTS, FULL, run_short


def noise(count: int, *, classes: int = 10) -> Dataset:
    random = np.random.default_rng(3)
    x = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
    y = np.arange(count) % classes
    return Dataset("noise", x, y, None, np.zeros(count, bool), test_is_ours=False)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("seed", range(3))
def test_every_client_gets_some_and_no_row_is_dealt_twice(name: str, seed: int) -> None:
    data = noise(2000)
    dealt = CELLS[name].deal(data, data.train_rows, np.random.default_rng(seed))
    assert len(dealt) == CLIENTS
    assert min(map(len, dealt)) >= 10
    rows = np.concatenate(dealt)
    assert len(np.unique(rows)) == len(rows) == 2000, "client i has class i: no class is left over"


@pytest.mark.parametrize(("name", "count"), [("one", 1), ("two", 2), ("three", 3)])
def test_a_client_has_so_many_labels_and_the_holders_of_one_share_it_equally(
    name: str, count: int
) -> None:
    data = noise(3000)
    dealt = CELLS[name].deal(data, data.train_rows, np.random.default_rng(7))
    for client, rows in enumerate(dealt):
        labels = set(data.y[rows].tolist())
        assert len(labels) == count
        assert client in labels
    for label in range(10):
        sizes = [found for rows in dealt if (found := int((data.y[rows] == label).sum()))]
        assert sum(sizes) == 300
        assert max(sizes) - min(sizes) <= 1


def test_dirichlet_shares_differ_and_who_has_a_tenth_gets_no_class_more() -> None:
    data = noise(4000)
    dealt = CELLS["dirichlet"].deal(data, data.train_rows, np.random.default_rng(1))
    sizes = [len(rows) for rows in dealt]
    assert max(sizes) > 1.2 * min(sizes)
    # The last class that it got found it below a tenth: it cannot have more than one class above.
    assert max(sizes) <= 400 + 400
    shares = np.array([np.bincount(data.y[rows], minlength=10) for rows in dealt]) / 400
    assert (shares > 0.3).any()
    assert (shares == 0).any()


def test_the_dense_arm_trains_a_client_as_torch_does() -> None:
    """Momentum from zero, weight decay in the gradient, a last batch that is short."""
    data = noise(150)
    options = TaskOptions(net="lenet", weight_decay=1e-2, seed=4)  # so large that it shows
    bundle = create_task("niid", data, options)
    plans = ARMS[0].plans(FULL._replace(epochs=1))
    fleet = Arena(bundle, data.x, data.y, [Member(np.arange(150), np.arange(0), 1.0)], plans)
    fleet.devices[0].fetched(fleet.server.newest)
    sent = fleet.train(fleet.devices[0], fleet.server.newest, seed=11)

    net = build_net("lenet", (1, 28, 28), 10, seed=4).double()
    start = [tensor.detach().clone() for tensor in net.parameters()]
    named = unflatten(fleet.server.newest.published, bundle.spec.shared)
    assert all(np.array_equal(named[n], t.detach().float()) for n, t in net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-2)
    order = np.random.default_rng(11).permutation(150)
    for rows in (order[:64], order[64:128], order[128:]):
        optimizer.zero_grad()
        inputs = torch.from_numpy(data.x[rows]).unsqueeze(1).double() / 255
        nn.functional.cross_entropy(net(inputs), torch.from_numpy(data.y[rows])).backward()
        optimizer.step()
    moved = {
        name: (after.detach() - before).numpy()
        for (name, after), before in zip(net.named_parameters(), start, strict=True)
    }
    wanted = flatten({n: np.float32(value) for n, value in moved.items()}, bundle.spec.shared)
    assert sent.dense is not None
    np.testing.assert_allclose(sent.dense, wanted, atol=2e-6)
    assert sent.samples == 150


def test_the_dense_arm_takes_the_mean_by_samples_and_bounds_no_client() -> None:
    data = noise(200)
    bundle = create_task("niid", data, TaskOptions(net="lenet", seed=1))
    members = [Member(np.arange(0, 190), np.arange(0), 1.0)]
    members += [Member(np.arange(190 + n, 191 + n), np.arange(0), 1.0) for n in range(3)]
    fleet = Arena(bundle, data.x, data.y, members, ARMS[0].plans(FULL._replace(epochs=1)))
    first = fleet.server.newest
    sents = []
    for device in fleet.devices:
        device.fetched(first)
        sents.append(fleet.train(device, first, seed=0))
    fleet.server.fold(sents)
    mean = sum(np.float64(s.samples) * s.dense for s in sents) / 193
    moved = fleet.server.newest.published.astype(np.float64) - first.published
    np.testing.assert_allclose(moved, mean, atol=1e-7)


@pytest.mark.slow
def test_all_arms_run_in_small_and_say_that_nothing_was_published_of_it() -> None:
    told: list[float] = []
    outcome = run_short((0,), True, lambda share, words: told.append(share))
    names = {figure.name for figure in outcome.figures}
    assert names == {f"Dirichlet(0.5), {arm.label}" for arm in ARMS}
    assert all(figure.published is None and figure.note for figure in outcome.figures)
    up = {f.name: f.ours for f in outcome.figures if f.metric == "% of the dense bytes, up"}
    assert all(0 < value < 2 for value in up.values())
    assert len(outcome.courses) == len(ARMS)
    assert told == sorted(told)
