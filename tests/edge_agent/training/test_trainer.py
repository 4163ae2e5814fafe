"""The trainer child, as a function: what it writes adds up."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from tiny_fleet import Files, blobs, tiny_spec

from edge_agent.samples.sample_store import segment_name
from edge_agent.training.trainer import carry_out, read_samples
from edge_agent.training.training_job import PAYLOAD, Job
from models.codec.payload import compress, decompress
from models.codec.transform.shared_basis import context_digest
from models.errors import PayloadError, UsageError
from models.host import files
from models.learning.training_loop import train
from models.protocol.learning import LearningPlan, StepsPlan
from models.protocol.manifest import CodecPlan
from models.protocol.npz import read_vector, write_vector
from models.protocol.update import context_in
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
