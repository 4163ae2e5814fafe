"""The client of the job as a Flower app."""

import time

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tools.bench.peers.programs.peer_notes import note, the_job
from tools.bench.peers.programs.torch_job import build, learn

__all__ = ["app"]

torch.set_num_threads(1)
app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    job, data = the_job()
    part = int(context.node_config["partition-id"])
    number = int(message.content["config"]["server-round"])
    note("begin", part=part, round=number)
    with np.load(data / f"client-{part + 1}.npz") as file:
        x, y = file["x"], file["y"]
    net = build(job, message.content["arrays"].to_torch_state_dict())
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    loss = learn(job, net, x, y, seed=100 * number + part)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    note("end", part=part, round=number, cpu_s=cpu_s, wall_s=wall_s)
    answer = RecordDict(
        {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y), "loss": loss}),
        }
    )
    return Message(content=answer, reply_to=message)
