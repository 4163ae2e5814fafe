"""Selectors, tickets, and the state that releases advance."""

import numpy as np
import pytest

from models.codec.budget import Budget
from models.codec.payload import compress, decompress
from models.codec.release_patch import patched
from models.codec.sparse.selection import gd_sec_threshold, only, top_k
from models.codec.sparse.ticket import restored, surviving, survivors
from models.errors import PayloadError
from models.task.spec import Role, TensorSpec

TENSORS = (TensorSpec("w", (30, 50), Role.SHARED), TensorSpec("b", (30,), Role.SHARED))
SIZE = 1530


def vector(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).laplace(size=SIZE) * 0.1).astype(np.float32)


def test_top_k_takes_the_largest_and_no_zero() -> None:
    wanted = np.array([0, -5, 1, 0, 3], np.float32)
    assert top_k(wanted, 0.4).tolist() == [1, 4]
    assert top_k(wanted, 1.0).tolist() == [1, 2, 4]
    assert top_k(np.zeros(0, np.float32), 0.5).size == 0
    np.testing.assert_array_equal(only(wanted, top_k(wanted, 0.4)), [0, -5, 0, 0, 3])


def test_gd_sec_sends_everything_at_zero_and_less_the_further_the_model_moved() -> None:
    wanted, moved = vector(0), vector(1)
    assert gd_sec_threshold(wanted, moved, xi=0, workers=5).size == np.count_nonzero(wanted)
    sizes = [gd_sec_threshold(wanted, moved, xi=xi, workers=5).size for xi in (1, 5, 50)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0]


def test_a_ticket_costs_no_bytes_and_its_zeros_stay_zeros() -> None:
    ticket = np.random.default_rng(0).random(SIZE) < 0.2
    ticket[1500:] = True
    tensors = surviving(TENSORS, ticket)
    assert [tensor.shape for tensor in tensors] == [(int(ticket[:1500].sum()),), (30,)]
    delta = vector(0) * ticket
    payload = compress(survivors(delta, ticket), tensors, Budget(nmse=0.1))
    found = restored(decompress(payload, tensors), ticket)
    assert not found[~ticket].any()
    assert np.square(delta - found).sum() <= 0.1 * np.square(delta).sum()
    assert len(payload) < 0.8 * len(compress(delta, TENSORS, Budget(nmse=0.1)))
    with pytest.raises(PayloadError, match="ticket"):
        surviving(TENSORS, ticket[1:])


def test_patches_do_not_drift_and_both_sides_hold_the_same_bits() -> None:
    """After each release the error is that of one patch, however many went before."""
    wanted = vector(0)
    server = device = np.zeros_like(wanted)
    for number in range(12):
        wanted = wanted + 0.1 * vector(number)
        apart = np.square(wanted - server).sum()
        patch = compress(wanted - server, TENSORS, Budget(nmse=0.2))
        server = patched(server, patch, TENSORS)
        device = patched(device, patch, TENSORS)
        assert device.tobytes() == server.tobytes()
        assert np.square(wanted - server).sum() <= 0.21 * apart
    assert np.square(wanted - server).sum() < 0.02 * np.square(wanted).sum()


def test_a_patch_that_overflows_is_refused() -> None:
    huge = np.full(SIZE, 3e38, np.float32)
    payload = compress(huge, TENSORS, Budget(nmse=0.1))
    with pytest.raises(PayloadError, match="not finite"):
        patched(huge, payload, TENSORS)
