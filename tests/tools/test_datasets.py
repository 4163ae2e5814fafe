"""Data sets: what is read, what is refused with which sentence, how devices get their parts."""

from pathlib import Path

import numpy as np
import pytest

from models.errors import UsageError
from tools.datasets import Dataset, load_dataset, split_devices

RANDOM = np.random.default_rng(0)


def save(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def good(count: int = 40) -> dict[str, np.ndarray]:
    return {
        "x": RANDOM.integers(0, 255, (count, 4, 4)).astype(np.uint8),
        "y": (np.arange(count) % 3).astype(np.uint8),
    }


def test_a_file_without_test_rows_lends_a_fifth_the_same_every_time(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", **good())
    first, second = load_dataset(path), load_dataset(path)
    assert first.test_is_ours
    assert len(first.test_rows) == 8
    assert (first.test == second.test).all()
    assert set(first.test_rows).isdisjoint(first.train_rows)


def test_test_rows_of_the_file_are_used_as_they_are(tmp_path: Path) -> None:
    test = np.arange(40) % 4 % 3  # 0, 1, 2, 0
    data = load_dataset(save(tmp_path / "d.npz", **good(), test=test, users=np.array(["a"])))
    assert not data.test_is_ours
    assert (data.test == (test > 0)).all()


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [("float64", "float32"), ("bool", "uint8"), ("uint8", "uint8"), ("int16", "int32")],
)
def test_samples_become_one_of_the_types_of_a_spec(
    tmp_path: Path, dtype: str, becomes: str
) -> None:
    arrays = good() | {"x": RANDOM.integers(0, 2, (40, 5)).astype(dtype)}
    assert load_dataset(save(tmp_path / "d.npz", **arrays)).x.dtype == becomes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"y": np.zeros(39, np.int64)}, "y has shape (39,), x has 40 samples"),
        ({"y": np.int64(3)}, "y is one number"),
        ({"y": np.full(40, -1)}, "label -1 in row 0"),
        ({"y": np.full(40, 1 << 20)}, "label 1048576 in row 0"),
        ({"y": np.full(40, np.nan)}, "y has a value in row 0 that is not finite"),
        ({"y": np.full(40, "a")}, "y is <U1"),
        ({"x": np.float32(1)}, "x has shape ()"),
        ({"x": np.zeros(40)}, "x has shape (40,)"),
        ({"x": np.zeros((40, 0))}, "not enough samples"),
        ({"x": np.full((40, 2), np.inf)}, "x has a value in row 0 that is not finite"),
        ({"x": np.zeros((40, 2), np.complex64)}, "x is complex64"),
        ({"user": np.zeros((40, 2), np.int64)}, "user must be one integer per sample"),
        ({"user": np.zeros(40)}, "user must be one integer per sample"),
        ({"test": np.ones(40)}, "none is left to train on"),
        ({"test": np.ones(3)}, "test has shape (3,)"),
        ({"x": np.array([{}] * 40, dtype=object)}, "holds Python objects (pickle)"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **(good() | change))  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        load_dataset(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no array 'y'"):
        load_dataset(save(tmp_path / "d.npz", x=np.zeros((4, 2))))


def test_a_missing_file_tells_what_could_be_given() -> None:
    with pytest.raises(UsageError, match="no data at nowhere"):
        load_dataset("nowhere.npz")


def test_any_damaged_file_is_a_usage_error(tmp_path: Path) -> None:
    whole = Path(save(tmp_path / "whole.npz", **good())).read_bytes()
    path = tmp_path / "cut.npz"
    for end in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:end])
        with pytest.raises(UsageError):
            load_dataset(str(path))
    for at in range(0, len(whole), 23):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_dataset(str(path))
        except UsageError:
            continue


def test_digits_are_real_and_bright() -> None:
    data = load_dataset("digits")
    assert data.x.shape == (1797, 8, 8)
    assert data.x.max() == 255
    assert data.classes == 10


def noise(count: int, users: int = 0) -> Dataset:
    return Dataset(
        name="noise",
        x=np.zeros((count, 2), np.uint8),
        y=np.arange(count) % 10,
        user=np.arange(count) % users if users else None,
        test=np.arange(count) % 5 == 0,
        test_is_ours=False,
    )


@pytest.mark.parametrize(("users", "devices"), [(0, 1), (0, 4), (0, 30), (12, 4), (12, 12)])
def test_no_row_is_dealt_twice_and_no_test_row_at_all(users: int, devices: int) -> None:
    data = noise(1000, users)
    parts = split_devices(data, devices, seed=7)
    rows = np.concatenate([np.concatenate(part) for part in parts])
    assert len(parts) == devices
    assert len(np.unique(rows)) == len(rows)
    assert not data.test[rows].any()
    assert all(len(part.holdout) and len(part.train) + len(part.holdout) >= 8 for part in parts)


def test_the_same_seed_deals_the_same_parts() -> None:
    once, again = (split_devices(noise(500), 5, seed=3) for _ in range(2))
    other = split_devices(noise(500), 5, seed=4)
    assert all(np.array_equal(a.train, b.train) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a.train, b.train) for a, b in zip(once, other, strict=True))


def test_a_device_gets_whole_users() -> None:
    data = noise(1200, users=12)
    assert data.user is not None
    owners = [set(data.user[np.concatenate(part)]) for part in split_devices(data, 4, seed=0)]
    assert sum(map(len, owners)) == 12
    assert len(set.union(*owners)) == 12


def test_small_alpha_deals_unevenly_and_large_alpha_evenly() -> None:
    def shares(alpha: float) -> np.ndarray:
        parts = split_devices(noise(5000), 4, seed=0, alpha=alpha)
        labels = noise(5000).y
        return np.array([np.bincount(labels[np.concatenate(p)], minlength=10) for p in parts])

    assert shares(0.3).std(axis=0).sum() > 5 * shares(1000.0).std(axis=0).sum()


def test_a_limit_is_kept() -> None:
    parts = split_devices(noise(5000), 4, seed=0, limit=100)
    assert all(len(part.train) + len(part.holdout) == 100 for part in parts)


@pytest.mark.parametrize(("data", "devices"), [(noise(100), 50), (noise(1000, users=3), 4)])
def test_too_many_devices_are_refused(data: Dataset, devices: int) -> None:
    with pytest.raises(UsageError, match="too few for"):
        split_devices(data, devices, seed=0)
