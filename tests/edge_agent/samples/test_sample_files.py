"""Files with rows that are no samples: the others are taken, these are named and kept."""

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import FEATURES, blobs, tiny_spec

from edge_agent.inbox import intake
from edge_agent.inbox.intake_job import Entry, IntakeJob, IntakeResult
from edge_agent.samples.entry_fate import CUT_OFF_S
from edge_agent.samples.sample_store import segments
from edge_agent.samples.segment_reading import read_samples
from models.task.spec import ArraySpec, encode_spec

X, Y = blobs(50, seed=3)
SPEC = tiny_spec()
REGRESSION = tiny_spec(classes=0, y=ArraySpec("float32", (2,)), loss="mse", metric="mse")


def saved(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def taken(root: Path, data: bytes | None, spec: object = SPEC, **job: object) -> IntakeResult:
    for name in ("inbox", "intake", "samples", "holdout"):
        (root / name).mkdir(exist_ok=True)
    (root / "spec.json").write_bytes(encode_spec(spec))
    if data is not None:
        (root / "inbox/hour.npz").write_bytes(data)
    given = IntakeJob(
        entries=(Entry(b"hour.npz", CUT_OFF_S, CUT_OFF_S),),
        inbox=str(root / "inbox"),
        workspace=str(root / "intake"),
        spec=str(root / "spec.json"),
        train=str(root / "samples"),
        holdout=str(root / "holdout"),
        holdout_share=0.0,
        max_count=1000,
        max_holdout=200,
        max_bytes=10_000_000,
        keep_rejected_bytes=10_000_000,
        keep_rejected_s=1e7,
        wall=2e9,
    )
    return intake.take_in(msgspec.structs.replace(given, **job))


def stored(root: Path, spec: object = SPEC) -> tuple[np.ndarray, np.ndarray]:
    return read_samples([s.path for s in segments(root / "samples")], spec, max_bytes=10**9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [[0], [17, 49], list(range(1, 50))])
def test_of_a_file_with_odd_values_the_good_rows_are_taken_and_the_others_named_and_kept(
    tmp_path: Path, value: float, rows: list[int]
) -> None:
    x = X.copy()
    x[rows, 1] = value
    result = taken(tmp_path, saved(x=x, y=Y))
    assert result.added == 50 - len(rows)
    good = np.delete(np.arange(50), rows)
    np.testing.assert_array_equal(stored(tmp_path)[0], X[good])
    np.testing.assert_array_equal(stored(tmp_path)[1], Y[good])
    (said,) = result.rejected
    assert f"{len(rows)} of 50 rows have values that are not finite, first row {rows[0]}" in said
    assert not (tmp_path / "inbox/hour.npz").exists()
    kept = np.load(tmp_path / "inbox/rejected/hour.npz")
    np.testing.assert_array_equal(kept["row"], rows)
    np.testing.assert_array_equal(kept["x"], x[rows])
    assert "first row" in (tmp_path / "inbox/rejected/reasons.txt").read_text()


def test_the_rows_of_targets_are_judged_as_those_of_samples(tmp_path: Path) -> None:
    y = np.zeros((50, 2), np.float32)
    y[3, 1] = np.nan
    result = taken(tmp_path, saved(x=X, y=y), REGRESSION)
    assert result.added == 49
    assert "first row 3" in result.rejected[0]


def test_the_owners_hold_out_stays_with_its_rows(tmp_path: Path) -> None:
    x = X.copy()
    x[0] = np.nan
    taken(tmp_path, saved(x=x, y=Y, test=np.arange(50) >= 40))
    assert len(stored(tmp_path)[0]) == 39
    (held,) = segments(tmp_path / "holdout")
    np.testing.assert_array_equal(np.load(held.path)["x"], X[40:])


def test_a_value_that_the_tasks_dtype_cannot_hold_is_not_finite_either(tmp_path: Path) -> None:
    x = X.astype(np.float64)
    x[7, 0] = 1e300
    result = taken(tmp_path, saved(x=x, y=Y))
    assert result.added == 49
    assert "first row 7" in result.rejected[0]


def test_a_file_without_one_good_row_is_put_aside_as_it_is(tmp_path: Path) -> None:
    data = saved(x=np.full((50, FEATURES), np.nan, np.float32), y=Y)
    result = taken(tmp_path, data)
    assert result.added == 0
    assert result.rejected == (
        "hour.npz: x: row 0 has a value that is not finite: repair it, or leave the row out",
    )
    assert (tmp_path / "inbox/rejected/hour.npz").read_bytes() == data


def test_without_room_among_the_rejected_the_good_rows_are_taken_all_the_same(
    tmp_path: Path,
) -> None:
    x = X.copy()
    x[5] = np.nan
    result = taken(tmp_path, saved(x=x, y=Y), keep_rejected_bytes=1)
    assert result.added == 49
    assert result.rejected[0].endswith(
        "first row 5; the others were taken, and inbox/rejected is full"
    )
    assert not (tmp_path / "inbox/hour.npz").exists()


def test_repeating_an_intake_that_ended_before_the_file_was_removed_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = X.copy()
    x[5] = np.nan
    with monkeypatch.context() as patch:
        patch.setattr(intake, "remove_same", lambda *_: None)
        taken(tmp_path, saved(x=x, y=Y))
    again = taken(tmp_path, None)
    assert again.added == 0
    assert len(stored(tmp_path)[0]) == 49
    assert not (tmp_path / "inbox/hour.npz").exists()


@pytest.mark.parametrize("error", [ValueError("\udcff\n" * 400), KeyError("x"), RecursionError()])
def test_a_mistake_of_ours_costs_the_entry_that_found_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def read(*_: object, **__: object) -> object:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(intake, "read_npz", read)
        result = taken(tmp_path, saved(x=X, y=Y))
    ((name, (group,)),) = result.waiting
    assert name == b"hour.npz"
    assert group.reason.startswith(f"reading it failed: {type(error).__name__}: ")
    assert group.reason.isprintable()
    assert len(group.reason) < 600
    msgspec.json.encode(result)
    assert taken(tmp_path, saved(x=X, y=Y)).added == 50


def test_a_list_of_reasons_that_cannot_be_written_keeps_nothing_from_being_taken(
    tmp_path: Path,
) -> None:
    (tmp_path / "inbox/rejected/reasons.txt").mkdir(parents=True)
    result = taken(tmp_path, saved(x=X, y=Y))
    assert result.added == 50
    assert "Is a directory" in result.foreign[0].reason


def test_an_array_for_another_task_is_no_mistake_of_its_rows(tmp_path: Path) -> None:
    x = X.copy()
    x[5] = np.nan
    result = taken(tmp_path, saved(x=x[:, :3], y=Y))
    assert result.added == 0
    assert (tmp_path / "inbox/hour.npz").exists()
