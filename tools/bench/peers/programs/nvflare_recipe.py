"""Writes the job as NVFLARE submits it: its FedAvg recipe on one flat vector.

usage: python -m tools.bench.peers.programs.nvflare_recipe DIRECTORY
"""

import sys
from pathlib import Path

import numpy as np
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe

from tools.bench.peers.programs.peer_notes import the_job

__all__ = ["main"]

NAME = "bench"  # the folder in DIRECTORY that is submitted


def main(directory: Path) -> None:
    job, data = the_job()
    with np.load(data / "init.npz") as file:
        flat = np.concatenate([file[name].ravel() for name, _ in job.shapes])
    start = directory.resolve() / "init.npy"
    np.save(start, flat.astype(np.float32))
    recipe = NumpyFedAvgRecipe(
        name=NAME,
        min_clients=job.clients,
        num_rounds=job.rounds,
        model=None,
        initial_ckpt=str(start),
        train_script=str(Path(__file__).with_name("nvflare_client.py")),
        train_args="",
    )
    recipe.export(str(directory))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
