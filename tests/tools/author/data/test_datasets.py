"""Data sets: what is read, what is refused with which sentence, how devices get their parts."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.errors import UsageError
from tools.author.data.built_in_data import read_digits
from tools.author.data.datasets import load_dataset
from tools.author.data.device_split import split_devices
from tools.author.data.labeled_data import Dataset

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
        ({"y": np.full(40, np.nan)}, "y has a value in row 0 that is not finite"),
        ({"y": np.full(40, 1j)}, "y is complex128"),
        ({"y": np.full(40, "2026-11-29", "M8[D]")}, "y is datetime64[D]"),
        ({"y": np.full(40, 2**64 - 1, np.uint64)}, "y has numbers up to 18446744073709551615"),
        ({"y": np.zeros((40, 0))}, "y has shape (40, 0)"),
        ({"y": np.array(["1.5", "2.5"] * 20)}, "y has numbers written as texts ('1.5' in row 0)"),
        ({"y": np.array(["a", "nan"] * 20)}, "row 1 of y has 'nan' for a label"),
        ({"y": np.array(["a", " "] * 20)}, "row 1 of y has '' for a label"),
        ({"y": np.array([b"\xff"] * 40)}, "y: the text in row 0 is not UTF-8"),
        ({"y": np.array(["cat", None] * 20, object)}, "save plain arrays, y.astype(str)"),
        ({"classes": np.array(["b", "c"]), "y": np.array(["b", "a"] * 20)}, "row 1 has the label"),
        ({"x": np.full((40, 2), "a")}, "leave columns of text out"),
        ({"x": np.zeros((40, 2), "M8[s]")}, "hours, weekdays"),
        ({"x": np.zeros(40, [("a", "f4"), ("b", "i4")])}, "columns a, b: save numpy.lib.recfunc"),
        ({"x": np.tile([0, 1e300], (40, 1))}, "not finite at [1]; 40 of 40 rows have one: 1e"),
        ({"x": np.float32(1)}, "x has shape ()"),
        ({"x": np.zeros(40)}, "x has shape (40,); (samples, ...) is needed; of one value per"),
        ({"x": np.zeros((40, 0))}, "not enough samples"),
        ({"x": np.full((40, 2), np.inf)}, "x has a value in row 0 that is not finite"),
        ({"x": np.zeros((40, 2), np.complex64)}, "x is complex64"),
        ({"user": np.zeros((40, 2), np.int64)}, "user must be one integer per sample"),
        ({"user": np.full(40, "ann")}, "save user=np.unique(user, return_inverse=True)[1]"),
        ({"test": np.full(40, "train")}, "save test=(test == 'NAME')"),
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
    with pytest.raises(UsageError, match="no array 'y' among x; "):
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


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    levels, labels = read_digits()
    np.testing.assert_array_equal(levels, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_digits_that_are_not_there_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"the digits come with scikit-learn; .*pip install"):
        read_digits()


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


def test_a_device_learns_from_all_of_its_rows_only_if_that_is_asked_for() -> None:
    whole = split_devices(noise(500), 3, seed=7, holdout_share=0)
    assert [len(part.holdout) for part in whole] == [0, 0, 0]
    tiny = split_devices(noise(500), 3, seed=7, holdout_share=0.001)
    assert [len(part.holdout) for part in tiny] == [1, 1, 1]


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


@pytest.mark.parametrize(
    ("y", "names", "labels"),
    [
        (["dog", "cat", "dog", "eel"], ("cat", "dog", "eel"), [1, 0, 1, 2]),
        ([b"dog", b"cat", b"dog", b"eel"], ("cat", "dog", "eel"), [1, 0, 1, 2]),
        (["10", "9", "1", "10"], ("1", "9", "10"), [2, 1, 0, 2]),
        ([" wet", "dry ", "wet", "dry"], ("dry", "wet"), [1, 0, 1, 0]),
        (["Äpfel", "Birnen", "Äpfel", "日本"], ("Birnen", "Äpfel", "日本"), [1, 0, 1, 2]),
    ],
)
def test_names_become_labels_in_sorted_order(
    tmp_path: Path, y: list[object], names: tuple[str, ...], labels: list[int]
) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((4, 2)), y=np.array(y))
    data = load_dataset(path)
    assert data.class_names == names
    assert data.y.tolist() == labels
    assert data.are_names


def test_a_list_of_classes_in_the_file_orders_its_names(tmp_path: Path) -> None:
    order = np.array(["eel", "dog", "cat"])
    path = save(tmp_path / "d.npz", x=np.zeros((2, 2)), y=np.array(["cat", "eel"]), classes=order)
    data = load_dataset(path)
    assert (data.class_names, data.y.tolist()) == (("eel", "dog", "cat"), [2, 0])


@pytest.mark.parametrize("name", ["float16", "<f8", ">f4", "longdouble"])
def test_floats_of_any_width_and_order_are_numbers(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "d.npz", x=np.full((4, 2), 0.5, name), y=np.full(4, 0.5, name))
    data = load_dataset(path)
    assert (data.x == 0.5).all()
    assert (data.y == 0.5).all()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (("x_train", "y_train", "x_test", "y_test"), "x=np.concatenate([d['x_train'], d['x_tes"),
        (("X_train", "Y_train", "X_test", "Y_test"), "test=np.repeat([0, 1], [len(d['X_train'])"),
        (("train_images", "train_labels", "test_images", "test_labels"), "d['train_images'], d["),
        (("data", "target"), "x=d['data'], y=d['target'])"),
        (("X", "y"), "no array 'x' among X, y; name them: d = np.load('d.npz'); np.savez("),
        (("X", "Y"), "x=d['X'], y=d['Y'])"),
        (("features", "labels"), "x=d['features'], y=d['labels'])"),
        (("images", "labels"), "x=d['images'], y=d['labels'])"),
        (("arr_0", "arr_1"), "x=d['arr_0'], y=d['arr_1'])"),
        (("x_train", "y_train"), "x=d['x_train'], y=d['y_train'])"),
        (("x",), "no array 'y' among x; add them"),
        (("foo", "bar"), "no array 'x' among bar, foo; write it with"),
    ],
)
def test_a_layout_of_others_is_named_with_the_line_that_changes_it(
    tmp_path: Path, arrays: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the sentence says to paste is pasted, and then the file is read."""
    path = tmp_path / "d.npz"
    save(path, **{name: np.zeros((4, 2)) if n % 2 == 0 else np.arange(4) % 2
                  for n, name in enumerate(arrays)})  # fmt: skip
    with pytest.raises(UsageError) as caught:
        load_dataset(str(path))
    assert says in str(caught.value)
    start = str(caught.value).find("d = np.load")
    if start >= 0 and "LABELS" not in str(caught.value):
        monkeypatch.chdir(tmp_path)
        line = str(caught.value)[start:]
        subprocess.run([sys.executable, "-c", f"import numpy as np; {line}"], check=True)
        assert len(load_dataset("samples.npz").x) == 2 * len(arrays)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.npy", b"\x93NUMPY\x01\x00", "one numpy array (.npy): x = np.load('d.npy')"),
        ("d.npz", b"\x93NUMPY\x01\x00", "one numpy array (.npy)"),
        ("d.csv", b"a,b\n1,2\n", "a table of text: d = np.genfromtxt('d.csv', delimiter"),
        ("d.pkl", b"\x80\x04\x95", "a pickle, which is never loaded"),
        ("d.bin", b"\x80\x05\x95", "a pickle, which is never loaded"),
        ("d.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file: read its arrays with h5py"),
        ("d.mat", b"MATLAB 5.0 MAT-file", "scipy.io.loadmat('d.mat')"),
        ("d.parquet", b"PAR1xxxx", "pandas.read_parquet('d.parquet')"),
        ("d.png", b"\x89PNG\r\n", "one picture"),
        ("d.json", b"{}", "a JSON file"),
        ("d.gz", b"\x1f\x8b\x08", "packed by gzip: unpack it"),
        ("d.npz", b"", "not a valid npz file"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_dataset(str(tmp_path / name))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_zip_file_without_arrays_is_no_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("a.csv", "1,2")
    with pytest.raises(UsageError, match=r"a zip file without arrays \(a\.csv\)"):
        load_dataset(str(tmp_path / "d.npz"))


def test_two_spellings_of_one_name_are_one_class(tmp_path: Path) -> None:
    """A Mac writes the accent as a letter of its own."""
    spelled = np.array(["Ku\u0308che", "K\u00fcche", "Flur"])
    data = load_dataset(str(save(tmp_path / "d.npz", x=np.zeros((3, 2)), y=spelled)))
    assert data.class_names == ("Flur", "K\u00fcche")
    assert data.y.tolist() == [1, 1, 0]
