"""Flower's own FedAvg (no torch here); each round's arrays are kept, to be scored afterwards."""

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from tools.bench.peers.programs.peer_notes import note, notes_directory, the_job

__all__ = ["app"]

LONGEST_S = 3600.0
app = ServerApp()


class KeptFedAvg(FedAvg):  # type: ignore[misc]  # flwr is not there to be checked
    """FedAvg that keeps every round's model."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        note("round begins", round=server_round)
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        note("round ends", round=server_round)
        path = notes_directory() / f"round-{server_round}.npz"
        np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
        return arrays, metrics


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    job, data = the_job()
    strategy = KeptFedAvg(
        fraction_train=1.0,
        min_train_nodes=job.clients,
        min_available_nodes=job.clients,
        fraction_evaluate=0.0,
        min_evaluate_nodes=0,
    )
    with np.load(data / "init.npz") as file:
        arrays = ArrayRecord({name: Array(file[name]) for name in file.files})
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=job.rounds, timeout=LONGEST_S)
    note("server is done")
