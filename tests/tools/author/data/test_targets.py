"""What y is for a model: taken rightly and said, or refused in a sentence with the remedy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_task import linear_model, some_data

from models.errors import UsageError
from models.samples.label_forms import UnknownClassError, labels_of
from models.task.spec import ArraySpec, TaskSpec
from tools.author.bundle.create_bundle import create_task, make_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.class_balance import about_balance, class_weights
from tools.author.data.datasets import load_dataset
from tools.author.data.targets import fitted_to, understood

LABELS = np.arange(60) % 3
HOT = np.eye(3)[LABELS]
ROWS = np.random.default_rng(3).integers(0, 3, (60, 5))  # a label for each of 5 moments
MANY = (np.arange(180).reshape(60, 3) % 4 < 2).astype(float)


def as_loaded(y: Any) -> np.ndarray:
    array = np.asarray(y)
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)


@pytest.mark.parametrize(
    ("y", "given", "kind", "loss", "expected"),
    [
        (LABELS, {}, "classes", "cross_entropy", LABELS),
        (LABELS[:, None], {}, "classes", "cross_entropy", LABELS),
        (LABELS[:, None], {"output": (3,)}, "classes", "cross_entropy", LABELS),
        (LABELS[:, None, None], {}, "classes", "cross_entropy", LABELS),
        (LABELS[:, None, None] * 1.0, {"output": (3,)}, "classes", "cross_entropy", LABELS),
        (HOT * 2 - 1, {"loss": "mse"}, "numbers", "mse", HOT * 2 - 1),
        (LABELS[:, None] * 1.0, {"output": (3,)}, "classes", "cross_entropy", LABELS),
        (LABELS * 1.0, {"output": (3,)}, "classes", "cross_entropy", LABELS),
        (LABELS * 1.0, {"output": (3, 1, 1)}, "classes", "cross_entropy", LABELS),
        (LABELS * 1.0, {"loss": "cross_entropy"}, "classes", "cross_entropy", LABELS),
        (LABELS * 1.0, {"classes": 3}, "classes", "cross_entropy", LABELS),
        (LABELS * 1.0, {"loss": "mse"}, "numbers", "mse", LABELS),
        (LABELS, {"loss": "mse"}, "numbers", "mse", LABELS),
        (LABELS - 1, {"loss": "mse"}, "numbers", "mse", LABELS - 1),
        (LABELS > 0, {}, "classes", "cross_entropy", LABELS > 0),
        (HOT, {}, "classes", "cross_entropy", LABELS),
        (HOT.astype(np.uint8), {"output": (3,)}, "classes", "cross_entropy", LABELS),
        (HOT.astype(bool), {"loss": "cross_entropy"}, "classes", "cross_entropy", LABELS),
        (HOT, {"loss": "bce"}, "multi_label", "bce", HOT),
        (HOT, {"loss": "mse"}, "numbers", "mse", HOT),
        (MANY, {}, "multi_label", "bce", MANY),
        (MANY.astype(np.uint8), {"output": (3,)}, "multi_label", "bce", MANY),
        (LABELS > 0, {"output": (1,)}, "multi_label", "bce", LABELS > 0),
        ((LABELS[:, None] > 0) * 1.0, {"output": (1,)}, "multi_label", "bce", LABELS[:, None] > 0),
        (LABELS / 7, {}, "numbers", "mse", LABELS / 7),
        (LABELS[:, None] / 7, {"output": (1,)}, "numbers", "mse", LABELS[:, None] / 7),
        (HOT / 7, {}, "numbers", "mse", HOT / 7),
        (MANY.astype(int), {"output": (3, 5)}, "classes", "cross_entropy", MANY),
        (MANY, {"output": (5, 3)}, "classes", "cross_entropy", MANY),
        (np.eye(3)[ROWS], {"output": (3, 5)}, "classes", "cross_entropy", ROWS),
        (np.eye(3)[ROWS], {"output": (5, 3)}, "classes", "cross_entropy", ROWS),
        (np.moveaxis(np.eye(3)[ROWS], -1, 1), {"output": (5, 3)}, "classes", "cross_entropy", ROWS),
        (np.moveaxis(np.eye(3)[ROWS], -1, 1), {"output": (3, 5)}, "classes", "cross_entropy", ROWS),
        (np.eye(3)[ROWS[:, :4].reshape(60, 2, 2)], {"output": (3, 2, 2)}, "classes",
         "cross_entropy", ROWS[:, :4].reshape(60, 2, 2)),
        (HOT / 7, {"output": (1, 3)}, "numbers", "mse", HOT / 7),
        (np.ones((60, 4, 5), int), {"output": (2, 4, 5)}, "classes", "cross_entropy", 1),
        (np.ones((60, 4, 5), int), {"output": (4, 5, 2)}, "classes", "cross_entropy", 1),
        (np.ones((60, 1, 4, 5)), {"output": (2, 4, 5)}, "classes", "cross_entropy", 1),
        (np.ones((60, 4, 5, 1), int), {"output": (2, 4, 5)}, "classes", "cross_entropy", 1),
    ],
)  # fmt: skip
def test_what_y_is_is_understood(
    y: np.ndarray, given: dict[str, Any], kind: str, loss: str, expected: Any
) -> None:
    found = understood("d.npz", as_loaded(y), **given)
    assert (found.kind, found.loss) == (kind, loss)
    assert found.y.dtype == (np.int64 if kind == "classes" else np.float32)
    np.testing.assert_allclose(found.y, np.broadcast_to(expected, found.y.shape), rtol=1e-6)


@pytest.mark.parametrize(
    ("y", "given", "says"),
    [
        (HOT, {}, "y are one-hot rows: taken as labels 0 to 2"),
        (LABELS[:, None], {}, "y is a column: taken as one label per sample"),
        (LABELS * 1.0, {"output": (3,)}, "y are whole floats: taken as labels"),
        (MANY, {}, "y has 0 or 1 in [3] places, several at once: learned by bce"),
        (HOT / 7, {}, "y has [3] numbers: learned by mse"),
        (LABELS > 0, {"output": (1,)}, "one output and y is 0 or 1: learned by bce"),
    ],
)
def test_a_choice_that_was_made_is_said(y: np.ndarray, given: dict[str, Any], says: str) -> None:
    assert says in " / ".join(understood("d.npz", as_loaded(y), **given).words)


@pytest.mark.parametrize(
    ("y", "given", "says"),
    [
        (LABELS + 1, {}, "labels go from 1 to 3, and classes count from 0: save y=y - 1; or say"),
        (LABELS + 1, {"output": (3,)}, "labels up to 3, the model knows 3 classes: they begin at"),
        (LABELS * 4 + 3, {}, "labels go from 3 to 11, and classes count from 0: number them anew"),
        (LABELS % 2 * 255, {}, "labels go up to 255, and only 2 occur (0, 255): number them anew"),
        (LABELS * 4, {"output": (3,)}, "labels up to 8, the model knows 3 classes: only 3 occur"),
        (np.arange(60), {"output": (3,)}, "the model knows 3 classes: give a model with 60"),
        (np.arange(60), {"classes": 3}, "the model knows 3 classes: --classes 60"),
        (LABELS % 2 * 2 - 1, {}, "label -1 in row 0, and classes count from 0: save y=(y > 0)"),
        (LABELS - 1, {}, "label -1 in row 0, and classes count from 0: leave such rows out (keep"),
        (np.full((60, 4), -100), {"output": (4, 3)}, "give them a class of their own"),
        (np.full(60, 1 << 20), {}, "label 1048576 in row 0; labels count from 0 and stay below"),
        (LABELS * 1.0, {}, "y has whole numbers from 0 to 2 of type float, which may be classes"),
        ((LABELS > 0) * 2.0 - 1, {}, "may be one of two classes or numbers: save y=(y > 0).astype"),
        (MANY * 2 - 1, {}, "may be several labels at once or numbers: save y=(y > 0).astype(int)"),
        (np.ones((60, 5, 3)) / 7, {"output": (3, 5)}, "side: save np.transpose(y, [0, 2, 1])"),
        (np.ones((60, 5, 3)), {"output": (3, 5), "loss": "bce"}, "save np.transpose(y, [0, 2, 1])"),
        (np.ones((60, 6, 2)) / 7, {"output": (3, 4)}, "side by side: save y in that shape"),
        (LABELS % 2 * 2 - 1, {"output": (1,)}, "one of two classes or numbers: save y=(y > 0)"),
        (LABELS % 2 * 2.0 - 1, {"output": (1,)}, "one of two classes or numbers: save y=(y > 0)"),
        (LABELS % 2, {"output": (1,), "are_names": True}, "one output: save y=(y == 'NAME')"),
        (MANY[:, :2].astype(int), {"output": (3,)}, "give a model that answers y"),
        (np.eye(2)[LABELS % 2], {"output": (1,)}, "it needs 2 outputs; or save y=y[:, 1]"),
        (MANY * 2 - 1, {"output": (3,)}, "may be several labels at once or numbers: save y=(y > 0"),
        (LABELS[:, None] * 1.0, {}, "--loss cross_entropy learns classes, --loss mse numbers"),
        (LABELS / 7, {"loss": "cross_entropy"}, "cross_entropy needs integer labels: --loss mse"),
        (LABELS, {"output": (1,)}, "and the model has one output: --loss mse learns them as"),
        (LABELS, {"loss": "bce"}, "bce needs y between 0 and 1, and row 2 has 2"),
        (LABELS % 2 * 2 - 1, {"loss": "bce"}, "save y=(y > 0).astype(np.float32)"),
        (MANY, {"loss": "cross_entropy"}, "ones, and cross_entropy needs one label per sample: -"),
        (LABELS / 7, {"output": (3,)}, "y has 1 number per sample, and the model answers [3]: mse"),
        (LABELS, {"output": (3,), "loss": "mse"}, "y has 1 number per sample, and the model answ"),
        (HOT[:, :2], {"output": (3,), "loss": "bce"}, "bce needs as many; cross_entropy needs"),
        (HOT * 0.9 + 1 / 30, {"output": (3,)}, "the rows of y sum to 1, as probabilities of 3"),
        (np.arange(500) * 3, {}, "y has 500 different whole numbers in 500 rows, which may be cl"),
        (LABELS * 0, {}, "all labels are 0, and at least two classes are needed"),
        (HOT, {"output": (1,)}, "y are one-hot rows of 3 classes, and the model answers [1]"),
        (np.arange(120).reshape(60, 2), {}, "y has [2] values per sample, and cross_entropy needs"),
        (LABELS, {"loss": "mse", "are_names": True}, "y holds names, and mse needs numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_or_could_be_two_things_is_refused_with_its_remedy(
    y: np.ndarray, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        understood("d.npz", as_loaded(y), **given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bundle_has_the_names_of_its_classes_and_other_files_are_read_by_them() -> None:
    names = ("cat", "dog", "eel")
    data = some_data(y=LABELS, class_names=names, are_names=True)
    spec = create_task("pets", data, TaskOptions(model=linear_model(), class_names=())).spec
    assert spec.class_names == names
    other = some_data(y=LABELS % 2, class_names=("dog", "eel"), are_names=True)
    assert fitted_to(other, spec).y.tolist() == (LABELS % 2 + 1).tolist()
    with pytest.raises(UsageError, match="row 0 has the label 'dig', which is no class: did you"):
        fitted_to(some_data(y=LABELS % 2, class_names=("dig", "eel"), are_names=True), spec)


def test_the_option_orders_names_that_are_labels() -> None:
    data = some_data(y=LABELS, class_names=("cat", "dog", "eel"), are_names=True)
    options = TaskOptions(model=linear_model(), class_names=("eel", "dog", "cat"))
    spec = create_task("pets", data, options).spec
    assert spec.class_names == ("eel", "dog", "cat")
    assert fitted_to(data, spec).y.tolist() == (2 - LABELS).tolist()


def task_spec(**changes: Any) -> TaskSpec:
    spec = create_task("pets", some_data(), TaskOptions(model=linear_model())).spec
    return type(spec)(**{name: getattr(spec, name) for name in spec.__struct_fields__} | changes)


@pytest.mark.parametrize(
    "y",
    [
        ["cat", "dog", "eel", "cat"],
        [b"cat", b"dog", b"eel", b"cat"],
        [" cat", "dog ", "eel", "cat"],
        ["0", "dog", "2", "cat"],
        [0, 1, 2, 0],
        [0.0, 1.0, 2.0, 0.0],
        [[0], [1], [2], [0]],
        [["cat"], ["dog"], ["eel"], ["cat"]],
        np.eye(3)[[0, 1, 2, 0]],
        np.eye(3, dtype=bool)[[0, 1, 2, 0]],
    ],
)
def test_a_device_takes_labels_in_each_form(y: Any) -> None:
    spec = task_spec(class_names=("cat", "dog", "eel"))
    assert labels_of(np.array(y), spec).tolist() == [0, 1, 2, 0]


def test_a_name_that_is_no_class_is_named_with_its_row_and_the_nearest() -> None:
    spec = task_spec(class_names=("cat", "dog", "eel"))
    with pytest.raises(UnknownClassError, match=r"'dgo' in row 1: .*did you mean 'dog'"):
        labels_of(np.array(["cat", "dgo"]), spec)
    with pytest.raises(UnknownClassError, match="a class is named by its number, 0 to 2"):
        labels_of(np.array(["cat", "dgo"]), task_spec())


def test_a_device_takes_labels_of_positions_in_each_form() -> None:
    spec = task_spec(y=ArraySpec("int64", (2, 4)), classes=3)
    labels = np.arange(40).reshape(5, 2, 4) % 3
    hot = np.eye(3)[labels]
    for y in (labels, labels[:, None], labels[..., None], hot, np.moveaxis(hot, -1, 1)):
        np.testing.assert_array_equal(labels_of(y, spec), labels)


def test_what_says_something_else_is_left_to_the_check_of_samples() -> None:
    spec = task_spec()
    for y in (np.ones((4, 3)), np.full(4, 0.5), np.zeros((4, 2)), np.array(3), np.full(4, np.nan)):
        np.testing.assert_array_equal(labels_of(y, spec), y)


def test_numbers_of_a_task_may_be_integers_and_columns() -> None:
    spec = task_spec(classes=0, loss="mse", metric="mse", y=ArraySpec("float32", (1,)))
    found = labels_of(np.arange(4), spec)
    assert (found.dtype, found.shape) == (np.float32, (4, 1))
    with pytest.raises(UsageError, match=r"y holds texts \('a' in row 0\)"):
        labels_of(np.array(["a", "b"]), spec)


@pytest.mark.parametrize("counts", [(10, 10, 10), (90, 9, 1), (1000, 1, 1), (50, 0, 50)])
def test_weights_of_classes_let_them_count_alike_within_bounds(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(3), counts)
    weights = np.array(class_weights(labels, 3))
    assert weights[labels].mean() == pytest.approx(1)
    there = np.array(counts) > 0
    mass = (weights * counts)[there]
    assert weights[there].max() <= 20.0001 * weights[there].min()
    if max(counts) <= 20 * min(c for c in counts if c):
        assert mass == pytest.approx(np.full(len(mass), mass[0]))
    assert (weights[~there] == 1).all()


def test_uneven_classes_are_said() -> None:
    uneven = np.repeat([0, 1], [900, 9])
    said = about_balance(uneven, ("dry", "wet"), 2)
    assert "class 0 dry has 900 training samples, class 1 wet has 9; --balance" in said
    assert not about_balance(np.repeat([0, 1], [90, 30]), (), 2)


def test_training_counts_each_sample_as_its_class_counts() -> None:
    from models.learning.training_loop import train
    from models.protocol.manifest import TrainingPlan
    from tools.author.bundle.export_model import read_tensors

    uneven = some_data(y=np.where(np.arange(60) % 10 == 3, 1, 0))
    model = linear_model()
    plain = create_task("t", uneven, TaskOptions(model=model))
    balanced = create_task("t", uneven, TaskOptions(model=model, balance=True))
    assert plain.spec.class_weights == ()
    assert len(balanced.spec.class_weights) == 3
    plan = TrainingPlan(open=True, epochs=3, batch=8, learning_rate=0.1)
    by_hand = np.array(balanced.spec.class_weights, np.float32)[uneven.y]
    results = [
        train(one.train, one.spec, read_tensors(one), uneven.x, uneven.y, plan, seed=1,
              sample_weight=weight).tensors
        for one, weight in ((balanced, None), (plain, by_hand), (plain, None))
    ]  # fmt: skip
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])
        assert not np.array_equal(results[0][name], results[2][name])


@pytest.mark.parametrize(
    ("y", "output"),
    [(np.linspace(0, 1, 180).reshape(60, 3), 3), ((np.arange(180) % 4 < 2).reshape(60, 3), 3)],
)
def test_only_classes_of_samples_can_be_balanced(y: np.ndarray, output: int) -> None:
    data = some_data(y=as_loaded(y))
    with pytest.raises(UsageError, match="--balance weighs samples by their class, and y of some"):
        create_task("t", data, TaskOptions(model=linear_model(output), balance=True))


def test_balance_is_said_or_proposed() -> None:
    uneven = some_data(y=(np.arange(60) == 3).astype(np.int64))
    for balance, says in ((False, "the classes are uneven: class 0"), (True, "--balance: in tra")):
        said: list[str] = []
        options = TaskOptions(model=linear_model(), balance=balance)
        create_task("t", uneven, options, on_warning=said.append)
        assert any(words.startswith(says) for words in said)


SPECS = (task_spec(), task_spec(y=ArraySpec("int64", (2,)), class_names=("a", "b", "0")))


POOLS = (
    np.array([0, 1]),
    np.array([0, 1, 2, 7, 255, -1, -100]),
    np.array([0.0, 1.0, 2.0]),
    np.array([0.0, 0.5, 1.0, -3.0, 1e300, np.nan, np.inf]),
    np.array(["a", "b", "", " a", "0", "1", "2", "0.5", "nan", "\ud800"]),
    np.array([b"a", b"\xff", b"1"]),
    np.array([1j, 0]),
    np.array(["2026-01-01", "NaT"], "M8[D]"),
    np.array([0, 2**64 - 1], np.uint64),
    np.zeros(2, [("a", "f4")]),
)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_array_is_understood_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    pool = data.draw(st.sampled_from(POOLS))
    chosen = data.draw(st.integers(1, len(pool)))
    shape = data.draw(st.lists(st.sampled_from([3, 3, 1, 2, 4, 0]), max_size=4))
    seed = data.draw(st.integers(0, 2**31))
    y = pool[np.random.default_rng(seed).integers(0, chosen, shape)]
    if data.draw(st.booleans()) and y.dtype.kind in "if" and (np.abs(y) < 300).all():
        y = y.astype(data.draw(st.sampled_from(["?", ">f4", "u1", "i2", "f2"])))
    path = tmp_path_factory.getbasetemp() / "any.npz"
    np.savez(path, x=np.ones((len(y) if y.ndim else 3, 2), np.float32), y=y)
    output = data.draw(st.none() | st.lists(st.integers(1, 4), max_size=3).map(tuple))
    loss = data.draw(st.sampled_from([None, "cross_entropy", "mse", "bce"]))
    classes = data.draw(st.sampled_from([None, 1, 3]))
    said = []
    try:
        given = load_dataset(str(path))
        found = understood(
            "d", given.y, loss=loss, output=output, classes=classes, are_names=given.are_names
        )
        assert len(found.y) == len(given.x)
        assert found.kind != "classes" or found.y.min() >= 0
        said += found.words
    except UsageError as error:
        said.append(str(error))
    for spec in SPECS:
        try:
            labels_of(y, spec)
        except UsageError as error:
            said.append(str(error))
    assert not any("\n" in words for words in said)


def test_labels_of_a_file_go_by_its_names_in_training_too() -> None:
    spec = task_spec(class_names=("ape", "bee", "cat"))
    some = some_data(y=LABELS % 2, class_names=("cat", "ape"))
    assert fitted_to(some, spec).y.tolist() == (2 - LABELS % 2 * 2).tolist()
    with pytest.raises(UsageError, match="label 2, and the file's own classes are 0 to 1"):
        fitted_to(some_data(y=LABELS, class_names=("cat", "ape")), spec)
    renamed = some_data(y=LABELS, class_names=("Affe", "Biene", "Katze"))
    assert fitted_to(renamed, spec).y.tolist() == LABELS.tolist()


@pytest.mark.parametrize("y", [LABELS, HOT.astype(int), HOT.astype(np.float32)])
def test_the_option_orders_labels_that_the_file_names(y: np.ndarray) -> None:
    data = some_data(y=y, class_names=("cat", "dog", "eel"))
    options = TaskOptions(model=linear_model(), class_names=("eel", "dog", "cat"), balance=True)
    made = make_task("pets", data, options)
    assert made.bundle.spec.class_names == ("eel", "dog", "cat")
    assert made.data.y.tolist() == (2 - LABELS).tolist()
    assert fitted_to(data, made.bundle.spec).y.tolist() == (2 - LABELS).tolist()
    with pytest.raises(
        UsageError, match=r"--classes names eel, dog, cow, and .* has the names cat,"
    ):
        make_task("pets", data, TaskOptions(net="mlp", class_names=("eel", "dog", "cow")))
