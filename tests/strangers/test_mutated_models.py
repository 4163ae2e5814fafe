"""Models that strangers have damaged: a task, or one sentence; the process goes on.

``EDGEFOLD_EXAMPLES`` says how many beyond those of every run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import mutated_models
import numpy as np
import pytest
from mutated_models import CLASSES, outcome
from onnx import helper, numpy_helper

from models.errors import UsageError
from models.graph.facts.size_limits import MOST_VALUES
from tools.author.bundle.create_bundle import create_task
from tools.author.bundle.task_options import TaskOptions
from tools.author.data.labeled_data import Dataset

MORE = int(os.environ.get("EDGEFOLD_EXAMPLES", "500"))
LONGEST_SENTENCE = 700
# Found by this program, each of its own kind: a function that calls itself, one with too few
# inputs, two of one name; a negative dimension, a window of two lengths, text that is no UTF-8;
# dimensions beyond any memory, names that break the line and very long ones.
FOUND = (1, 40, 249, 523, 201, 284, 2052, 2278, 1089, 114, 1071)


def check_sentence(seed: int, sentence: str) -> None:
    assert "Traceback" not in sentence, seed
    assert sentence.isprintable(), (seed, sentence)
    assert len(sentence) < LONGEST_SENTENCE, seed


@pytest.mark.parametrize("seed", [*FOUND, *range(10_000, 10_060)])
def test_a_damaged_model_is_a_task_or_one_sentence(tmp_path: Path, seed: int) -> None:
    check_sentence(seed, outcome(seed, tmp_path))


@pytest.mark.slow
def test_no_damaged_model_ends_the_process_that_reads_it(tmp_path: Path) -> None:
    """Native code reads them: what it dies of has no exception. So this is a process of its own."""
    program = [sys.executable, mutated_models.__file__, "20000", str(MORE), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=3000, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (told[-1:], done.stderr[-500:])
    ends = [one for one in told if len(one) > 1]
    assert len(ends) == MORE
    for one in ends:
        assert "error" not in one, one
        assert one["seconds"] < 20, one
        check_sentence(one["seed"], one["sentence"])
    assert sum(one["sentence"] == "" for one in ends) > MORE / 100  # some are only odd


HUGE = (10**9, 10**12, 2**62)
FILLERS = {
    "ConstantOfShape": ["n"],
    "Range": ["zero", "number", "step"],
}


@pytest.mark.parametrize("count", HUGE)
@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("operator", FILLERS)
def test_a_few_bytes_that_ask_for_all_memory_are_refused_by_name(
    tmp_path: Path, operator: str, count: int, as_node: bool
) -> None:
    constants = {
        "n": np.array([count]),
        "zero": np.array(0),
        "number": np.array(count),
        "step": np.array(1),
    }
    arrays = {name: constants[name] for name in FILLERS[operator]}
    nodes = [
        helper.make_node(operator, FILLERS[operator], ["z"], name="filler"),
        helper.make_node("Cast", ["z"], ["zf"], to=1),
        helper.make_node("ReduceSum", ["zf"], ["s"], keepdims=0),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "s"], ["y"]),
    ]
    weights = [numpy_helper.from_array(np.ones((4, CLASSES), np.float32), "w")]
    for name, array in arrays.items():
        tensor = numpy_helper.from_array(array, name)
        if as_node:
            nodes.insert(0, helper.make_node("Constant", [], [name], value=tensor))
        else:
            weights.append(tensor)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["batch", 4])],
        [helper.make_tensor_value_info("y", 1, ["batch", CLASSES])],
        weights,
    )
    path = tmp_path / "huge.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    y = np.arange(12) % CLASSES
    data = Dataset("d.npz", np.ones((12, 4), np.float32), y, None, y == 0, test_is_ours=True)
    with pytest.raises(UsageError, match=f"'filler' .{operator}. makes .* at most {MOST_VALUES}"):
        create_task("t", data, TaskOptions(model=path))
