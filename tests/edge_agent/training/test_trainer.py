"""The trainer child, as a function: what it writes adds up."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny_fleet import Files, blobs, tiny_spec

from edge_agent.samples.sample_store import segment_name
from edge_agent.samples.segment_reading import read_samples
from edge_agent.training.trainer import carry_out
from edge_agent.training.training_job import (
    JOB,
    PAYLOAD,
    RESULT,
    TRAINER,
    Job,
    decode_job,
    decode_result,
    update_header,
)
from models.codec.feedback import history_digest
from models.codec.payload import compress, decompress
from models.codec.transform.shared_basis import context_digest
from models.errors import PayloadError, UsageError
from models.host import files
from models.learning.training_loop import train
from models.protocol.learning import LearningPlan, StepsPlan
from models.protocol.manifest import CodecPlan
from models.protocol.npz import read_vector, write_vector
from models.protocol.update import context_in, decode_header
from models.task.params import flatten, unflatten

SPEC = tiny_spec()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    files = Files(1)
    paths = {}
    for kind, data in files.files.items():
        paths[kind] = str(tmp_path / kind)
        Path(paths[kind]).write_bytes(data)
    segments = []
    for part, seed in enumerate((1, 2)):
        x, y = blobs(40, seed)
        segments.append(str(tmp_path / segment_name(40 * part, 40, "a" * 16, part)))
        np.savez(segments[-1], x=x, y=y)
    return Job(
        do="train",
        number=1,
        release=1,
        spec=paths["spec"],
        train_model=paths["train"],
        infer_model=paths["infer"],
        parameters=paths["parameters"],
        samples=tuple(segments[:1]),
        holdout=tuple(segments[1:]),
        plan=files.manifest.training,
        codec=CodecPlan(keep=0.3, centers=2),
        max_sample_bytes=10**6,
        seed=5,
        new_residual=str(tmp_path / "residual-1.npz"),
        new_personal=str(tmp_path / "personal-1.npz"),
    )


def owed(job: Job) -> np.ndarray:
    data = Path(job.new_residual).read_bytes()
    return read_vector(data, size=SPEC.shared_size, name="residual")


def test_payload_and_residual_add_up_to_delta_residual_and_refunds(
    job: Job, tmp_path: Path
) -> None:
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    before = np.linspace(-0.01, 0.01, SPEC.shared_size, dtype=np.float32)
    (tmp_path / "old.npz").write_bytes(write_vector(before, "residual"))
    refused = compress(np.full(SPEC.shared_size, 0.02, np.float32), SPEC.shared, job.codec)
    (tmp_path / "refund-1.bin").write_bytes(refused)
    (tmp_path / "refund-2.bin").write_bytes(b"not a payload")
    job = msgspec.structs.replace(
        job,
        residual=str(tmp_path / "old.npz"),
        refunds=(str(tmp_path / "refund-1.bin"), str(tmp_path / "refund-2.bin")),
    )
    result = carry_out(job, tmp_path)
    x, y = blobs(40, 1)
    trained = train(
        Path(job.train_model).read_bytes(),
        SPEC,
        unflatten(base, SPEC.shared),
        x,
        y,
        job.plan,
        seed=job.seed,
    )
    delta = flatten(trained.tensors, SPEC.shared) - base
    sent = decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)
    expected = delta + before + decompress(refused, SPEC.shared)
    np.testing.assert_allclose(sent + owed(job), expected, atol=1e-6)
    assert result.refunds_lost == 1
    assert (result.samples, result.holdout, result.steps) == (40, 40, 6)


def test_the_release_is_measured_on_the_holdout_before_training(job: Job, tmp_path: Path) -> None:
    result = carry_out(msgspec.structs.replace(job, evaluate_after=True), tmp_path)
    x, y = blobs(40, 2)
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    tensors = unflatten(base, SPEC.shared)
    expected = float(np.mean((x @ tensors["W"] + tensors["b"]).argmax(1) == y))
    assert result.metric == pytest.approx(expected)
    assert result.metric_after is not None
    assert result.metric_after > 0.8


def test_a_lost_residual_is_reported_and_training_goes_on(job: Job, tmp_path: Path) -> None:
    result = carry_out(msgspec.structs.replace(job, residual=str(tmp_path / "gone")), tmp_path)
    assert result.residual_lost
    assert result.payload_size > 0


def test_only_the_newest_samples_that_fit_are_read(job: Job) -> None:
    both = (*job.samples, *job.holdout)
    x, _ = read_samples(both, SPEC, max_bytes=10**6)
    np.testing.assert_array_equal(x, np.concatenate([blobs(40, 1)[0], blobs(40, 2)[0]]))
    x, _ = read_samples(both, SPEC, max_bytes=1500)
    np.testing.assert_array_equal(x, blobs(40, 2)[0])


def test_damaged_segments_are_left_out(job: Job, tmp_path: Path) -> None:
    Path(job.samples[0]).write_bytes(b"PK?")
    with pytest.raises(UsageError, match="no samples"):
        carry_out(job, tmp_path)


UNREADABLE = "/proc/self/mem"  # reading its first byte is an input/output error


def test_what_lies_on_a_bad_sector_counts_as_damaged(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "READ_AGAIN_S", (0.0, 0.0))
    with pytest.raises(OSError, match="Input/output error"):
        Path(UNREADABLE).read_bytes()
    segments = (UNREADABLE, *job.samples)
    unread = msgspec.structs.replace(job, residual=UNREADABLE, samples=segments)
    result = carry_out(unread, tmp_path)
    assert result.residual_lost
    assert result.samples == carry_out(job, tmp_path).samples


def in_context(job: Job, tmp_path: Path) -> tuple[Job, np.ndarray]:
    """Return ``job`` with a parent release, and what the release changed of it."""
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    parent = base - np.linspace(0.1, 1, SPEC.shared_size, dtype=np.float32)
    (tmp_path / "parent").write_bytes(write_vector(parent))
    job = msgspec.structs.replace(
        job, previous=str(tmp_path / "parent"), contexts=str(tmp_path), codec=CodecPlan()
    )
    return job, base - parent


def test_a_payload_in_the_context_of_the_last_release_adds_up_too(job: Job, tmp_path: Path) -> None:
    job, context = in_context(job, tmp_path)
    carry_out(job, tmp_path)
    payload = (tmp_path / PAYLOAD).read_bytes()
    digest = context_in(payload)
    assert digest is not None
    assert digest == context_digest(context)
    sent = decompress(payload, SPEC.shared, context=context)
    with pytest.raises(PayloadError):
        decompress(payload, SPEC.shared)

    (tmp_path / "refund-1.bin").write_bytes(payload)  # the server refused it: it comes back
    again = msgspec.structs.replace(
        job, residual=job.new_residual, refunds=(str(tmp_path / "refund-1.bin"),), previous=None
    )
    before = owed(job)
    result = carry_out(again, tmp_path)
    assert (result.refunds_lost, result.residual_lost) == (0, False)
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    x, y = blobs(40, 1)
    model, tensors = Path(job.train_model).read_bytes(), unflatten(base, SPEC.shared)
    trained = train(model, SPEC, tensors, x, y, job.plan, seed=job.seed)
    delta = flatten(trained.tensors, SPEC.shared) - base
    second = decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)
    np.testing.assert_allclose(second + owed(again), delta + before + sent, atol=1e-5)


@pytest.mark.parametrize("why", ["switched off", "no parent", "parent gone", "nothing changed"])
def test_without_a_context_a_payload_stands_for_itself(job: Job, tmp_path: Path, why: str) -> None:
    job, _ = in_context(job, tmp_path)
    if why == "switched off":
        job = msgspec.structs.replace(job, codec=CodecPlan(context="none"))
    elif why == "no parent":
        job = msgspec.structs.replace(job, previous=None)
    elif why == "parent gone":
        (tmp_path / "parent").unlink()
    else:
        (tmp_path / "parent").write_bytes(Path(job.parameters).read_bytes())
    carry_out(job, tmp_path)
    payload = (tmp_path / PAYLOAD).read_bytes()
    assert context_in(payload) is None
    decompress(payload, SPEC.shared)
    assert not list(tmp_path.glob("context-*"))


STEPS = StepsPlan(rho=1.0, beta=1.0, delta=1.0, phi=0.1, reference=2.0)


def test_who_is_asked_tells_what_the_training_saw_and_scales_its_delta(
    job: Job, tmp_path: Path
) -> None:
    """FedNova: a delta of many steps counts as one of as many as usual."""
    plain = carry_out(job, tmp_path)
    assert plain.extras is None
    before = np.float64(decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)) + owed(job)
    asked = msgspec.structs.replace(job, learning=LearningPlan(steps=STEPS))
    result = carry_out(asked, tmp_path)
    assert result.extras is not None
    told = result.extras
    assert told.effective >= result.steps
    assert min(told.rho or 0, told.beta or 0, told.gradient_norm or 0) > 0
    assert told.seconds > 0
    assert told.ms_per_step == result.ms_per_step
    after = np.float64(decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)) + owed(job)
    np.testing.assert_allclose(after, before * 2.0 / told.effective, rtol=1e-4, atol=1e-7)


def test_before_anything_is_known_nothing_is_scaled(job: Job, tmp_path: Path) -> None:
    carry_out(job, tmp_path)
    before = np.float64(decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)) + owed(job)
    asking = StepsPlan(rho=0.0, beta=0.0, delta=0.0, phi=0.0, reference=0.0)
    asked = msgspec.structs.replace(job, learning=LearningPlan(steps=asking))
    result = carry_out(asked, tmp_path)
    assert result.extras is not None
    assert result.extras.effective > 0
    after = np.float64(decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)) + owed(job)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-8)


# -- with a memory


def written(path: str, member: str) -> np.ndarray:
    return read_vector(Path(path).read_bytes(), size=SPEC.shared_size, name=member)


def remembering(job: Job, tmp_path: Path, **plan: Any) -> Job:
    """Return ``job`` under a plan, with an h and an e to start from."""
    rng = np.random.default_rng(3)
    history, owed_before = (rng.normal(0, 0.05, SPEC.shared_size) for _ in range(2))
    (tmp_path / "h.npz").write_bytes(write_vector(history.astype(np.float32), "history"))
    (tmp_path / "e.npz").write_bytes(write_vector(owed_before.astype(np.float32), "residual"))
    return msgspec.structs.replace(
        job,
        learning=LearningPlan(**plan),
        codec=CodecPlan(context="own"),
        history=str(tmp_path / "h.npz"),
        residual=str(tmp_path / "e.npz"),
        new_history=str(tmp_path / "history-1.npz"),
        new_owed=str(tmp_path / "owed-1.npz"),
        contexts=str(tmp_path),
    )


def delta_of(job: Job) -> np.ndarray:
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    x, y = blobs(40, 1)
    model, tensors = Path(job.train_model).read_bytes(), unflatten(base, SPEC.shared)
    trained = train(model, SPEC, tensors, x, y, job.plan, seed=job.seed)
    return flatten(trained.tensors, SPEC.shared) - base


@pytest.mark.parametrize(("feedback", "beta"), [("memory", 1.0), ("gd-sec", 0.25)])
def test_with_a_memory_history_and_owed_after_the_update_are_written_beside_those_before(
    job: Job, tmp_path: Path, feedback: str, beta: float
) -> None:
    job = remembering(job, tmp_path, feedback=feedback, beta=beta)
    result = carry_out(job, tmp_path)
    h, e = written(str(tmp_path / "h.npz"), "history"), written(str(tmp_path / "e.npz"), "residual")
    payload = (tmp_path / PAYLOAD).read_bytes()
    assert result.extras is not None
    assert context_in(payload) == result.extras.memory == history_digest(h) != 0
    said = decompress(payload, SPEC.shared, context=h)
    asked = delta_of(job) - h + e
    assert np.linalg.norm(said - asked) < 0.8 * np.linalg.norm(asked)
    after = written(job.new_history, "history")
    assert after.tobytes() == (h + np.float32(beta) * said).astype(np.float32).tobytes()
    if feedback == "gd-sec":
        np.testing.assert_allclose(written(job.new_owed, "residual"), asked - said, atol=1e-6)
    assert (result.has_next, result.has_next_owed) == (True, feedback == "gd-sec")
    assert not result.has_residual
    assert not Path(job.new_residual).exists(), "what was owed before is still owed, until then"


def test_refunds_of_before_a_memory_are_owed_until_it_is_folded(job: Job, tmp_path: Path) -> None:
    job = remembering(job, tmp_path, feedback="memory")
    refused = compress(np.full(SPEC.shared_size, 0.02, np.float32), SPEC.shared, CodecPlan())
    (tmp_path / "refund-1.bin").write_bytes(refused)
    job = msgspec.structs.replace(job, refunds=(str(tmp_path / "refund-1.bin"),))
    assert carry_out(job, tmp_path).has_residual
    e = written(str(tmp_path / "e.npz"), "residual")
    back = decompress(refused, SPEC.shared)
    np.testing.assert_allclose(written(job.new_residual, "residual"), e + back, atol=1e-7)


def test_a_memory_that_cannot_be_read_counts_as_zeros(job: Job, tmp_path: Path) -> None:
    job = remembering(job, tmp_path, feedback="memory")
    (tmp_path / "h.npz").write_bytes(b"PK")
    result = carry_out(job, tmp_path)
    assert result.history_lost
    assert result.extras is not None
    assert result.extras.memory == 0
    payload = (tmp_path / PAYLOAD).read_bytes()
    said = decompress(payload, SPEC.shared)
    np.testing.assert_array_equal(written(job.new_history, "history"), said)


def test_gd_sec_says_what_is_large_against_what_the_model_moved(job: Job, tmp_path: Path) -> None:
    job = remembering(job, tmp_path, feedback="gd-sec", beta=0.5, threshold=1.0)
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    moved = np.zeros(SPEC.shared_size, np.float32)
    moved[::2] = 100.0  # nothing exceeds twice that
    (tmp_path / "parent").write_bytes(write_vector(base - moved))
    job = msgspec.structs.replace(
        job, moved_from=str(tmp_path / "parent"), codec=CodecPlan(context="none", nmse=1e-4)
    )
    carry_out(job, tmp_path)
    said = decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)
    asked = said + written(job.new_owed, "residual")
    assert not said[::2].any()
    np.testing.assert_allclose(said[1::2], asked[1::2], atol=0.05)


@pytest.mark.parametrize("batch", [40, 16])
def test_the_synchronous_mode_makes_one_plain_step_on_all_samples(
    job: Job, tmp_path: Path, batch: int
) -> None:
    """Against the closed form of softmax regression, in float64."""
    plan = msgspec.structs.replace(job.plan, batch=batch, learning_rate=0.2)
    job = msgspec.structs.replace(
        remembering(job, tmp_path, feedback="gd-sec", gradient=True),
        plan=plan,
        history=None,
        residual=None,
        codec=CodecPlan(context="none", nmse=1e-6),
    )
    result = carry_out(job, tmp_path)
    x, y = blobs(40, 1)
    base = read_vector(Path(job.parameters).read_bytes(), size=SPEC.shared_size)
    tensors = {name: v.astype(np.float64) for name, v in unflatten(base, SPEC.shared).items()}
    z = x.astype(np.float64) @ tensors["W"] + tensors["b"]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    gradient = np.concatenate([(x.T @ p / len(y)).ravel(), p.mean(axis=0)])
    said = decompress((tmp_path / PAYLOAD).read_bytes(), SPEC.shared)
    asked = said + written(job.new_owed, "residual")
    np.testing.assert_allclose(asked, -0.2 * gradient, atol=1e-6)
    assert result.steps == 1
    assert result.loss_first == pytest.approx(loss, rel=1e-5)


def test_while_an_answer_is_waited_for_nothing_is_packed(job: Job, tmp_path: Path) -> None:
    job = msgspec.structs.replace(remembering(job, tmp_path, feedback="memory"), sends=False)
    result = carry_out(job, tmp_path)
    assert (result.has_payload, result.payload_size, result.extras) == (False, 0, None)
    assert result.steps == 6
    assert not (tmp_path / PAYLOAD).exists()
    assert not Path(job.new_history).exists()


def test_the_codec_begins_where_it_ended_last(job: Job, tmp_path: Path) -> None:
    job = msgspec.structs.replace(job, codec=CodecPlan())
    first = carry_out(job, tmp_path)
    assert first.codec_step is not None
    assert first.codec_step > 0
    second = carry_out(msgspec.structs.replace(job, hint=first.codec_step), tmp_path)
    assert second.codec_step == pytest.approx(first.codec_step, rel=0.5)


def test_the_header_says_more_only_of_releases_with_a_plan(job: Job, tmp_path: Path) -> None:
    result = carry_out(job, tmp_path)
    payload = (tmp_path / PAYLOAD).read_bytes()
    plain = update_header(result, payload, "blobs")
    assert plain[:3] == b"EU\x01"
    job = remembering(job, tmp_path, feedback="memory")
    result = carry_out(msgspec.structs.replace(job, evaluate_after=True), tmp_path)
    payload = (tmp_path / PAYLOAD).read_bytes()
    head, _ = decode_header(update_header(result, payload, "blobs"))
    assert head.extras is not None
    assert head.extras.accuracy_after == result.metric_after
    assert head.extras.seconds == pytest.approx(result.seconds, abs=1e-3)
    assert head.extras.ms_per_step == pytest.approx(result.ms_per_step, abs=1e-3)
    assert head.extras.memory != 0


def test_a_real_child_does_the_same(job: Job, tmp_path: Path) -> None:
    job = remembering(job, tmp_path, feedback="gd-sec", threshold=0.5)
    expected = carry_out(job, tmp_path)
    names = [PAYLOAD, "history-1.npz", "owed-1.npz"]
    before = [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / name).unlink()
    (tmp_path / JOB).write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", TRAINER, str(tmp_path / JOB)]
    subprocess.run(command, check=True, timeout=60)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    found = decode_result((tmp_path / RESULT).read_bytes())
    assert found.extras == expected.extras
    assert (found.payload_sha256, found.codec_step) == (
        expected.payload_sha256,
        expected.codec_step,
    )


def test_jobs_and_results_of_before_are_read(job: Job) -> None:
    """Those that lie about when the program is replaced: nothing of theirs may be lost."""
    old = {
        name: value for name, value in msgspec.to_builtins(job).items() if name in OLD_JOB.split()
    }
    found = decode_job(msgspec.json.encode(old))
    assert (found.sends, found.how, found.history) == (True, LearningPlan(), None)
    result = decode_result(b'{"number": 1, "release": 1, "payload_size": 3}')
    assert (result.has_payload, result.has_residual, result.has_next) == (True, True, False)


OLD_JOB = (  # what jobs had then
    "do number release spec train_model infer_model parameters samples holdout plan codec "
    "max_sample_bytes seed residual personal new_residual new_personal"
)


@pytest.mark.parametrize("data", [None, b"PK not an npz"])
def test_a_tuned_model_that_is_lost_leaves_the_release_to_be_measured(
    job: Job, tmp_path: Path, data: bytes | None
) -> None:
    tuned = tmp_path / "tuned-0.npz"
    if data is not None:
        tuned.write_bytes(data)
    job = msgspec.structs.replace(job, do="evaluate", chooses=True, tuned=str(tuned))
    result = carry_out(job, tmp_path)
    assert result.metric is not None
    assert result.scores is not None
    assert (result.scores.tuned, result.scores.comparison) == (None, None)


@pytest.mark.parametrize("data", [None, b"PK not an npz"])
def test_a_model_of_this_device_alone_that_is_lost_begins_anew(
    job: Job, tmp_path: Path, data: bytes | None
) -> None:
    first = msgspec.structs.replace(job, do="alone", new_alone=str(tmp_path / "alone-1.npz"))
    assert carry_out(first, tmp_path).begins_anew
    goes_on = msgspec.structs.replace(
        first, alone=first.new_alone, new_alone=str(tmp_path / "alone-2.npz")
    )
    assert not carry_out(goes_on, tmp_path).begins_anew
    lost = tmp_path / "alone-1.npz"
    lost.unlink() if data is None else lost.write_bytes(data)
    result = carry_out(goes_on, tmp_path)
    assert result.begins_anew
    assert result.steps > 0
