"""What `accelerate launch` runs in every process: one method on the tiny rows of support.py, its weights and losses.

    accelerate launch --config_file accelerate_configs/cpu_ddp.yaml tests/distributed/worker.py OUT BATCH METHOD:KIND …

BATCH is of the whole step, over all processes.
"""

import json
import os
import sys
from pathlib import Path

import llm_unlearn  # noqa: F401  before transformers: see torchvision_guard.py

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from support import own_weights, trainer

STEPS = 4


def main(out: Path, batch: int, cases: list[str]) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for case in cases:
        method, _, kind = case.partition(":")
        run = trainer(method, kind, out / f"work-{case}", per_device_train_batch_size=batch // world, max_steps=STEPS,
                      optim="sgd", learning_rate=0.05, logging_steps=1)
        assert run.args.world_size == world
        run.train()
        figures = run.evaluate()
        model = run.accelerator.unwrap_model(run.model)
        if run.accelerator.is_main_process:
            torch.save(own_weights(model), out / f"{case}.pt")
            losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
            (out / f"{case}.json").write_text(json.dumps({
                "world_size": run.accelerator.num_processes, "backend": str(torch.distributed.get_backend())
                if torch.distributed.is_initialized() else None, "losses": losses, "figures": figures,
                "cost": run.cost}))
        run.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
