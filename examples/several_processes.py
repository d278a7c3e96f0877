"""One meta-training in several processes, each with its share of every meta-batch: on several GPUs, or cores.

    torchrun --nproc-per-node 2 examples/several_processes.py

trains on sinusoids as one process would, and prints the query loss.
"""

from __future__ import annotations

import os

import torch
from torch import distributed, nn

import fewstep
from fewstep.core.over_tasks import sharded
from fewstep.core.rng import generator
from fewstep.tasks.sinusoid import Sinusoid


def main() -> None:
    """Every process does the same with the same numbers, but for what `sharded` shares out."""
    local = int(os.environ["LOCAL_RANK"])  # torchrun's: which of this machine's processes it is
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", local) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_gpus else "gloo", device_id=device if on_gpus else None)
    torch.manual_seed(0)  # the same initialisation everywhere
    network = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    learner = fewstep.SupervisedLearner(
        network,
        nn.functional.mse_loss,
        fewstep.maml(fewstep.Sgd(0.01), steps=1),
        over_tasks=sharded(fewstep.auto()),
        device=device,
    )
    tasks = Sinusoid(shots=10, queries=10)
    for iteration in range(100):
        loss = learner.step(tasks.sample(24, generator(0, iteration)))["query_loss"]  # the same tasks everywhere
    if distributed.get_rank() == 0:  # one of them prints, and would save
        print(f"query loss {loss:.6f}")
    distributed.barrier()  # gloo may abort a process whose peer has left
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
