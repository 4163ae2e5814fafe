"""Payloads of the past decode to the same bits for ever, and averages move alike, everywhere.

A change of what these files decode to is a change of the wire format and needs a new tag.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from models.codec.average import averaged
from models.codec.payload import decompress
from models.task.spec import Role, TensorSpec

VECTORS = Path(__file__).parents[2] / "vectors"
GOLDEN = json.loads((VECTORS / "payloads.json").read_text("utf-8"))
TENSORS = [TensorSpec(t["name"], tuple(t["shape"]), Role.SHARED) for t in GOLDEN["tensors"]]


@pytest.mark.parametrize("golden", GOLDEN["payloads"], ids=lambda golden: golden["file"])
def test_a_payload_decodes_to_the_same_bits(golden) -> None:
    context = None
    if golden["context"]:
        context = decompress((VECTORS / golden["context"]).read_bytes(), TENSORS)
    found = decompress((VECTORS / golden["file"]).read_bytes(), TENSORS, context=context)
    assert np.count_nonzero(found) == golden["nonzero"]
    assert found[:4].tolist() == golden["first"]
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest() == golden["sha256"]


MOVES = json.loads((VECTORS / "averages.json").read_text("utf-8"))["moves"]


@pytest.mark.parametrize("number", range(len(MOVES)))
def test_an_average_moves_to_the_same_bits(number: int) -> None:
    golden, move = np.load(VECTORS / "averages.npz"), MOVES[number]
    found = averaged(golden["average"], golden["published"], move["number"], decay=move["decay"])
    assert found.dtype == np.float32
    assert found.tobytes() == golden[f"moved_{number}"].tobytes()
