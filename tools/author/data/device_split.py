"""The rows of a data set dealt to devices, unevenly, as life does."""

from typing import NamedTuple

import numpy as np

from models.errors import UsageError
from tools.author.data.labeled_data import Dataset, Rows

__all__ = ["Part", "split_devices"]

SMALLEST_PART = 8  # samples; a device with fewer has nothing to learn from


class Part(NamedTuple):
    """One device's rows of a data set, disjoint: to learn from, and to measure itself on."""

    train: Rows
    holdout: Rows


def split_devices(
    data: Dataset,
    devices: int,
    *,
    seed: int,
    alpha: float = 0.3,
    holdout_share: float = 0.2,
    limit: int | None = None,
) -> list[Part]:
    """Deal the training rows to ``devices``, unevenly, as life does.

    Where the data know their users, each device gets whole users (several where there are more
    users than devices); else each class is dealt by proportions drawn from Dirichlet(``alpha``)
    (Hsu, Qi, Brown, arXiv:1909.06335). ``limit``: at most so many rows for each device.
    No row is dealt twice; each device has at least 8 rows. Of each device's rows at least one is
    held out, unless ``holdout_share`` is 0.

    Raises:
        UsageError: not enough data or users for so many devices.
    """
    rows = data.train_rows
    if devices < 1:
        raise UsageError(f"{devices} devices: at least one is needed")
    if len(rows) < devices * SMALLEST_PART:
        raise UsageError(
            f"{data.name} has {len(rows)} training rows: too few for {devices} devices"
        )
    random = np.random.default_rng(seed)
    by_user = data.user is not None and bool((data.user[rows] >= 0).any())
    shares = (
        _deal_users(data, rows, devices, random, limit)
        if by_user
        else _deal_classes(data, rows, devices, random, alpha)
    )
    parts = []
    for share in shares:
        dealt = random.permutation(share)[:limit]
        held = min(len(dealt) - 1, max(1, round(holdout_share * len(dealt))))
        held = held if holdout_share else 0
        parts.append(Part(train=np.sort(dealt[held:]), holdout=np.sort(dealt[:held])))
    return parts


def _deal_users(
    data: Dataset, rows: Rows, devices: int, random: np.random.Generator, limit: int | None
) -> list[Rows]:
    assert data.user is not None
    owners = data.user[rows]
    users, counts = np.unique(owners[owners >= 0], return_counts=True)
    able = random.permutation(users[counts >= SMALLEST_PART])
    if len(able) < devices:
        raise UsageError(
            f"{data.name} has {len(able)} users with at least {SMALLEST_PART} training rows: "
            f"too few for {devices} devices"
        )
    shares: list[list[Rows]] = [[] for _ in range(devices)]
    for turn, user in enumerate(able):
        share = shares[turn % devices]
        if limit is None or sum(map(len, share)) < limit:  # few users each keep parts different
            share.append(rows[owners == user])
    return [np.concatenate(share) for share in shares]


def _deal_classes(
    data: Dataset, rows: Rows, devices: int, random: np.random.Generator, alpha: float
) -> list[Rows]:
    labels = data.y[rows].reshape(len(rows), -1)[:, 0] if data.classes else np.zeros(len(rows))
    for _ in range(100):
        shares: list[list[Rows]] = [[] for _ in range(devices)]
        for label in np.unique(labels):
            mine = random.permutation(rows[labels == label])
            ends = np.cumsum(random.dirichlet(np.full(devices, alpha)))[:-1] * len(mine)
            for share, piece in zip(shares, np.split(mine, ends.astype(int)), strict=True):
                share.append(piece)
        dealt = [np.concatenate(share) for share in shares]
        if min(map(len, dealt)) >= SMALLEST_PART:
            return dealt
    for share_index in np.argsort([len(share) for share in dealt]):  # never lucky: the rich give
        while len(dealt[share_index]) < SMALLEST_PART:
            richest = int(np.argmax([len(share) for share in dealt]))
            dealt[share_index] = np.append(dealt[share_index], dealt[richest][-1])
            dealt[richest] = dealt[richest][:-1]
    return dealt
