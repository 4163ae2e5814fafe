"""Synthetic windows of inertial sensors: made to resemble what phones at hips record, not recorded.

Six activities at 50 Hz, 128 samples of acceleration with gravity (g), angular rate (rad/s) and
acceleration without gravity, three axes each. Users differ in what makes such data non-IID: how
the device sits (a rotation of their own), pace, strength, smoothness of gait, and how much they
do of each activity.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["ACTIVITIES", "SAMPLES", "Windows", "inertial_windows"]

ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")
RATE_HZ = 50.0
SAMPLES = 128

_GAITS = {  # strength of (vertical, forward, sideways) acceleration in g, of turning in rad/s, pace
    0: ((0.28, 0.16, 0.10), 0.9, 1.0),
    1: ((0.22, 0.20, 0.09), 1.2, 0.85),
    2: ((0.38, 0.18, 0.12), 1.1, 1.1),
}
_LEANING = {0: 0.05, 1: 0.3, 2: -0.15, 3: 0.9, 4: 0.0, 5: 1.5}  # of the trunk, in rad

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Windows(NamedTuple):
    """``x`` float32 [n, 9, SAMPLES], ``y`` int64 [n] (see ACTIVITIES), ``user`` int64 [n]."""

    x: Floats
    y: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]


def inertial_windows(users: int, each: int, *, seed: int) -> Windows:
    """Return ``each`` windows of every user."""
    windows, labels = [], []
    for user in range(users):
        random = np.random.default_rng([seed, user])
        habits = random.dirichlet(np.full(len(ACTIVITIES), 2.0))
        worn = _rotation(random.normal(0, 0.5, 3))
        pace = random.normal(1.9, 0.18)  # steps per second
        strength = random.lognormal(0, 0.25)
        overtones = random.uniform(0.2, 0.6, 3)
        for label in random.choice(len(ACTIVITIES), each, p=habits):
            labels.append(label)
            windows.append(_window(int(label), random, worn, pace, strength, overtones))
    owners = np.repeat(np.arange(users), each)
    return Windows(np.stack(windows).astype(np.float32), np.array(labels, np.int64), owners)


def _window(
    label: int,
    random: np.random.Generator,
    worn: Doubles,
    pace: float,
    strength: float,
    overtones: Doubles,
) -> Doubles:
    time = np.arange(SAMPLES) / RATE_HZ
    motion, turning = np.zeros((3, SAMPLES)), np.zeros((3, SAMPLES))
    if label in _GAITS:
        parts, turns, speed = _GAITS[label]
        phase = 2 * np.pi * (pace * speed * random.normal(1, 0.04) * time + random.random())
        for axis, part in enumerate(parts):
            rhythm = 1.0 if axis == 0 else 0.5  # sideways and forward go with both steps
            wave = np.sin(rhythm * phase + axis)
            wave += overtones[0] * np.sin(2 * rhythm * phase + 2 * axis)
            wave += overtones[1] * np.sin(3 * rhythm * phase) * (label == 2)
            motion[axis] = strength * part * wave
            turning[axis] = turns * overtones[2] * np.cos(0.5 * phase + 2 * axis)
    else:
        sway = 2 * np.pi * (0.3 * time + random.random())
        motion += 0.004 * np.sin(sway)
        turning += 0.02 * np.cos(sway)
    lean = _rotation(np.array([0.0, _LEANING[label] + random.normal(0, 0.12), 0.0]))
    frame = worn @ _rotation(random.normal(0, 0.06, 3))
    gravity = frame @ lean @ np.array([1.0, 0.0, 0.0])
    felt = frame @ lean @ motion + random.normal(0, 0.02, (3, SAMPLES))
    rates = frame @ turning + random.normal(0, 0.03, (3, SAMPLES))
    return np.concatenate([felt + gravity[:, None], rates, felt])


def _rotation(vector: Doubles) -> Doubles:
    """Return the rotation about ``vector`` by its length (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: Doubles = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned
