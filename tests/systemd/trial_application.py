"""An application on the board of trial.sh: another user's, with the client and nothing else.

trial_application.py ask SAMPLES.npz            prints how many answers are right
trial_application.py feed SAMPLES.npz INBOX     puts them into the inbox
"""

import sys
import zipfile
from pathlib import Path

from edgefold_client import Array, Client, add_samples, npy_header

DTYPES = {"|u1": "uint8", "<f4": "float32", "<f8": "float64", "<i8": "int64"}


def read(file: str, name: str) -> Array:
    """Return an array of an npz: the system's Python has no numpy."""
    data = zipfile.ZipFile(file).read(f"{name}.npy")
    header = npy_header(data)
    return Array(data[header.start :], header.shape, DTYPES[header.descr])


def main(command: str, file: str, *inbox: str) -> None:
    x, y = read(file, "x"), read(file, "y")
    if command == "feed":
        print(add_samples(Path(*inbox), x, y))
        return
    assert "numpy" not in sys.modules
    with Client(wait_s=60) as model:
        answer = model.ask(x)
    labels = memoryview(y.data).cast("B").cast("q").tolist()
    right = sum(found == label for found, label in zip(answer.classes or [], labels, strict=True))
    print(f"release {answer.release}: {right} of {len(labels)} right")


main(*sys.argv[1:])
