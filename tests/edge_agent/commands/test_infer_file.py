"""What ``edgefold-agent infer`` prints."""

import numpy as np

from edge_agent.client.edgefold_client import Answer
from edge_agent.commands.infer_file import lines_of


def test_a_class_is_printed_by_its_name_with_the_score() -> None:
    answer = Answer(1, np.array([[0.2, 0.75], [0.9, 0.1]]), [1, 0], ["hi", "lo"], [0.75, 0.9])
    assert list(lines_of(answer)) == ["hi  0.75", "lo  0.9"]


def test_the_classes_of_positions_are_printed_by_their_names() -> None:
    outputs = np.zeros((1, 2, 2, 3))
    labels, names = [[[0, 1], [2, 0]]], [[["a", "b"], ["c", "a"]]]
    scores = [[[0.0, 0.0], [0.0, 0.0]]]
    assert list(lines_of(Answer(1, outputs, labels, names, scores))) == ["a, b, c, a"]
    assert list(lines_of(Answer(1, outputs, labels, None, scores))) == ["0, 1, 2, 0"]


def test_what_are_no_classes_are_numbers() -> None:
    assert list(lines_of(Answer(1, np.array([[0.5, 2.0]]), None, None, None))) == ["0.5 2"]
