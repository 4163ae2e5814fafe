"""Each of a hundred small nets trains as torch trains it, or is refused by name."""

import os

import pytest
from hundred_nets import HUNDRED
from torch_check import check

from models.errors import UsageError

WAYS = [(dynamo, dynamic) for dynamo in (False, True) for dynamic in (False, True)]
OLDER = WAYS[:2]  # torch's older exporter
STATIC = WAYS[::2]  # exported for one sample

# What is refused, with what the refusal says and of which exports.
REFUSED = {
    "spatial transformer": ("GridSample", WAYS),
    "local response norm": ("control flow", OLDER),
    "upsampled 1d": ("one batch size", [(True, False)]),  # an index with the number of samples
    "sparse experts": ("one batch size|batch as first dimension", STATIC),  # zeros [1, 3]
}

# One of each kind, for each run of the suite; by the newer exporter, which is slow, two.
QUICK = (
    *("mlp mish", "mlp prelu", "mlp hardswish", "ends in softmax", "table of categories"),
    *("sparse experts", "cosine classifier", "prototypes", "ordered outputs", "soft tree"),
    *("separable", "u-net transposed", "super-resolution", "reflected pads"),
    *("statistics pooling", "top-k pooling", "temporal convolution", "attention", "padded text"),
)
QUICK_BY_DYNAMO = ("statistics pooling", "causal attention")


def holds(name: str, dynamo: bool, dynamic: bool) -> None:
    words, ways = REFUSED.get(name, ("", []))
    if (dynamo, dynamic) in ways:
        with pytest.raises(UsageError, match=words):
            check(HUNDRED[name], dynamo=dynamo, dynamic=dynamic)
    else:
        check(HUNDRED[name], dynamo=dynamo, dynamic=dynamic)


@pytest.mark.parametrize("name", QUICK)
def test_a_net_of_each_kind_trains_as_torch_trains_it(name: str) -> None:
    holds(name, dynamo=False, dynamic=True)


@pytest.mark.parametrize("name", QUICK_BY_DYNAMO)
def test_and_so_it_does_from_the_newer_exporter(name: str) -> None:
    holds(name, dynamo=True, dynamic=QUICK_BY_DYNAMO.index(name) % 2 == 0)


def exports() -> list[tuple[str, bool, bool]]:
    """All nets in all ways, or one way each: every fourth by the newer exporter, which is slow."""
    if os.environ.get("EDGEFOLD_NETS") == "full":
        return [(name, *way) for name in HUNDRED for way in WAYS]
    return [
        (name, number % 4 == 0, (number // 4 if number % 4 == 0 else number) % 2 == 0)
        for number, name in enumerate(HUNDRED)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamo", "dynamic"), exports())
def test_every_net_trains_as_torch_trains_it(name: str, dynamo: bool, dynamic: bool) -> None:
    holds(name, dynamo, dynamic)


def test_there_are_a_hundred_nets_and_few_are_refused() -> None:
    assert len(HUNDRED) >= 100
    assert len(REFUSED) <= 5
    assert HUNDRED.keys() >= {*REFUSED, *QUICK, *QUICK_BY_DYNAMO}
