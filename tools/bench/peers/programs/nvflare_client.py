"""The client of the job as NVFLARE's client API has it: one process for all rounds."""

import time

import numpy as np
import nvflare.client as flare
import torch

from tools.bench.peers.programs.peer_notes import note, notes_directory, the_job
from tools.bench.peers.programs.torch_job import build, learn

__all__ = ["main"]


def main() -> None:
    torch.set_num_threads(1)
    flare.init()
    job, data = the_job()
    part = int(flare.system_info()["site_name"].split("-")[1]) - 1
    with np.load(data / f"client-{part + 1}.npz") as file:
        x, y = file["x"], file["y"]
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        (key,) = list(model.params)[:1]
        number = model.current_round + 1
        note("begin", part=part, round=number)
        vector = np.asarray(model.params[key], dtype=np.float32).ravel()
        if part == 0:  # what the server has of the last round, to be scored afterwards
            np.save(notes_directory() / f"round-{number - 1}.npy", vector)
        state, at = {}, 0
        for name, shape in job.shapes:
            size = int(np.prod(shape))
            state[name] = torch.from_numpy(vector[at : at + size].reshape(shape).copy())
            at += size
        net = build(job, state)
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        loss = learn(job, net, x, y, seed=100 * number + part)
        cpu_s, wall_s = time.thread_time() - cpu_s, time.perf_counter() - wall_s
        note("end", part=part, round=number, cpu_s=cpu_s, wall_s=wall_s)
        learned = net.state_dict()
        flat = np.concatenate([learned[name].detach().numpy().ravel() for name, _ in job.shapes])
        answer = flare.FLModel(
            params={key: flat},
            params_type=flare.ParamsType.FULL,
            metrics={"loss": loss},
            current_round=model.current_round,
            meta={"NUM_STEPS_CURRENT_ROUND": len(y)},
        )
        flare.send(answer)


if __name__ == "__main__":
    main()
