"""What `accelerate launch` runs in every process: methods on the tiny rows of support.py, their weights and losses.

    accelerate launch --config_file accelerate_configs/cpu_ddp.yaml tests/distributed/worker.py OUT BATCH CASE …

CASE is METHOD:KIND[:VARIANT], the variant a number of micro-batches, `evaluated` (after each step), `floor` (back to
step 1 after step 2), `offloaded` (the reference), `compiled` (the blocks, but not of one process alone), `loaded` (from
its folder, which under FSDP2 no process reads whole), `stored` (the base in 4 bits, kept as floats) or `pushed` (to the
hub of HF_ENDPOINT). BATCH is of the whole step, over all processes and micro-batches; one process alone takes it in one
piece.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path

import llm_unlearn.vision  # noqa: F401  before transformers: see vision/torchvision_guard.py

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from support import build, trainer, with_adapter
from torch._dynamo.utils import counters
from transformers import TrainingArguments

from llm_unlearn.config.model_sections import LoraSection, ModelSection
from llm_unlearn.distributed.processes import Processes, exit_with
from llm_unlearn.distributed.sharding import is_partitioned, is_sharded, release, whole_state_dict
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.models.load import load_full, load_model
from llm_unlearn.tasks.probe import keeps_apart, plain_head
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support import compiling

STEPS = 4


def engine() -> str:
    """The engine that the launcher asks for."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "FSDP"
    return "DEEPSPEED" if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" else "MULTI_GPU"


def shard_on_a_cpu() -> None:
    """Accelerate would fall back to DistributedDataParallel, silently, since it shards on accelerators only."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from transformers import TrainingArguments

    if engine() != "FSDP":
        return
    setup = TrainingArguments.__post_init__

    def patched(self):
        setup(self)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    TrainingArguments.__post_init__ = patched


def main(out: Path, batch: int, cases: list[str]) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    shard_on_a_cpu()
    if engine() == "DEEPSPEED":
        import deepspeed  # noqa: F401  now, so that it is frozen too
    gc.freeze()  # each case collects garbage several times, which else means to look through every library each time
    for case in cases:
        method, kind, variant = (*case.split(":"), "")[:3]
        try:
            result, weights = run_case(method, kind, variant, out / f"work-{case}", batch // world)
        except InputError as error:  # all processes refuse alike; after anything else they would be out of step
            result, weights = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}, {}
        except Exception as error:
            raise RuntimeError(f"process {os.environ.get('RANK', '0')}, {case}: {error}") from error
        if int(os.environ.get("RANK", "0")) == 0:
            torch.save(weights, out / f"{case}.pt")
            (out / f"{case}.json").write_text(json.dumps({"world_size": world, **result}))


def load_saved(kind: str, folder: Path, seed: int = 0) -> torch.nn.Module:
    """The model of `build` from a folder, as a path is loaded that a trainer is given."""
    TrainingArguments(str(folder), use_cpu=True)  # see shard_on_a_cpu
    base, adapter = folder / "base", folder / "adapter"
    if Processes.current().is_main:
        build("full", seed).save_pretrained(base)
        if "lora" in kind:
            model = build(kind, seed)
            model.peft_config["default"].base_model_name_or_path = str(base)
            model.save_pretrained(adapter)
    Processes.current().wait()  # until the main one has written
    return load_full(str(adapter if "lora" in kind else base))


def load_stored(kind: str, folder: Path, seed: int = 0) -> torch.nn.Module:
    """The model of `build`, its base in 4 bits whose bytes are kept as float32, or as bfloat16."""
    TrainingArguments(str(folder), use_cpu=True)  # see shard_on_a_cpu
    if Processes.current().is_main:
        build("full", seed).save_pretrained(folder / "base")
    Processes.current().wait()  # until the main one has written
    storage = "bfloat16" if "bf16" in kind else "float32"
    section = ModelSection(path="base", quantization="4bit", quant_storage=storage, lora=LoraSection())
    return with_adapter(load_model(folder / "base", section))


def run_case(method: str, kind: str, variant: str, folder: Path, batch: int) -> tuple[dict, dict]:
    options = {"eval_strategy": "steps", "eval_steps": 1} if variant in ("evaluated", "floor") else {}
    if variant == "offloaded":
        options["offload_reference"] = True
    if variant == "compiled" and "WORLD_SIZE" in os.environ:
        options["compile_blocks"] = True
        compiling.BACKEND = "aot_eager"  # traced forward and backward, but run by the same kernels
    if variant == "floor":
        options["utility_floor"] = 0.5
    if variant.isdigit() and "WORLD_SIZE" in os.environ:
        batch //= int(variant)
        options["gradient_accumulation_steps"] = int(variant)
    # the model first: arguments that are made before it would let DeepSpeed partition it as it is loaded
    from_folder = {"loaded": load_saved, "stored": load_stored}
    begun = from_folder.get(variant, lambda kind, folder, seed=0: build(kind, seed))
    model = begun(kind, folder / "model")
    in_parts = is_sharded(model)
    run = trainer(
        method,
        kind,
        folder,
        model=model,
        start=begun("full", folder / "start", 1) if METHODS[method][1].starts_clean and kind == "full" else None,
        per_device_train_batch_size=batch,
        max_steps=STEPS,
        optim="sgd",
        learning_rate=0.05,
        logging_steps=1,
        **options,
    )
    if variant == "pushed":
        run.args.hub_model_id = f"me/{method}-{kind}"
    run.evaluate_callback = lambda model: {"utility": float(run.state.global_step < 2)}
    run.train()
    graphs = counters["stats"].pop("unique_graphs", 0)  # that torch.compile made
    figures = run.evaluate()
    if variant == "pushed":
        run.push_to_hub(base="me/base" if kind == "lora" else None)
    weights = {
        name: weight
        for name, weight in whole_state_dict(run.accelerator.unwrap_model(run.model)).items()
        if f".{REFERENCE_ADAPTER}." not in name
    }
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    sharded = is_sharded(run.model)
    whole = [
        name for name, p in run.model.named_parameters() if not hasattr(p, "device_mesh") and not is_partitioned(p)
    ]
    inner = run.accelerator.unwrap_model(run.model)
    head = plain_head(inner, inner.get_base_model() if hasattr(inner, "get_base_model") else inner)
    fast = {"chunked": head is not None, "packed": head is not None and keeps_apart(inner, head)}
    launched = torch.distributed.is_initialized()
    backend = str(torch.distributed.get_backend()) if launched else None
    release(run)
    gc.collect()
    plain = (torch.Tensor, torch.nn.Parameter)  # a DTensor has none itself: its part is a tensor
    storages = [o.untyped_storage() for o in gc.get_objects() if type(o) in plain]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    return {
        "held": held,
        "processes": run.accelerator.num_processes,
        "backend": backend,
        "groups": len(torch.distributed.distributed_c10d._world.pg_map) if launched else 0,
        "losses": losses,
        "figures": figures,
        "engine": str(run.accelerator.distributed_type.value),
        "sharded": sharded,
        "whole": whole,
        "loaded_in_parts": in_parts,
        **fast,
        "graphs": graphs,
        "cost": run.cost,
    }, weights


if __name__ == "__main__":
    exit_with(lambda: main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
