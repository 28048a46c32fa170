"""Measure the memory of a training or unlearning step and compare it with the estimate of `llm-unlearn doctor`.

    python scripts/measure_memory.py                     # every case, each in a process of its own
    python scripts/measure_memory.py llama-kl gpt2-lora  # some of them
    python scripts/measure_memory.py --json              # for a machine
    python scripts/measure_memory.py gpt2-kl --accelerate-config accelerate_configs/cpu_zero2.yaml   # first process

On a CPU the figure is the largest resident set of the process (VmHWM, reset after the libraries were loaded and warmed
up) minus the resident set at that time; on a GPU it is `torch.cuda.max_memory_allocated`. glibc is told to return freed
memory at once (MALLOC_MMAP_THRESHOLD_); by default it keeps some, which `--default-malloc` shows.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GPT2 = {
    "model_type": "gpt2",
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 320,
    "n_positions": 256,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
LORA = {"r": 16, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
GPT2_LORA = {"r": 16, "target_modules": ["c_attn", "c_fc"]}
COMPLETION = {"data.loss_on": "completion"}
STEPS = 3
# case → (the step: "train" or a method, architecture, changes to the recipe)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": ("train", GPT2, {}),
    "gpt2-completion": ("train", GPT2, COMPLETION),
    "gpt2-checkpointing": ("train", GPT2, {"model.gradient_checkpointing": True}),
    "gpt2-accumulation": ("train", GPT2, {"train.gradient_accumulation_steps": 2}),
    "gpt2-sgd": ("train", GPT2, {"train.optim": "sgd"}),
    "gpt2-bf16": ("train", GPT2, {"train.bf16": True}),
    "gpt2-lora": ("train", GPT2, {"model.lora": GPT2_LORA}),
    "gpt2-gradient_ascent": ("gradient_ascent", GPT2, {}),
    "gpt2-kl": ("kl", GPT2, {}),
    "gpt2-kl-completion": ("kl", GPT2, COMPLETION),
    "gpt2-kl-lora": ("kl", GPT2, {"model.lora": GPT2_LORA}),
    "gpt2-npo": ("npo", GPT2, {}),
    "gpt2-wide-vocabulary": ("train", GPT2, {"model.vocab_size": 32768, "train.batch_size": 4}),
    "llama": ("train", LLAMA, {}),
    "llama-completion": ("train", LLAMA, COMPLETION),
    "llama-bfloat16": ("train", LLAMA, {"model.dtype": "bfloat16", "train.bf16": True}),
    "llama-8bit-optimizer": ("train", LLAMA, {"train.optim": "paged_adamw_8bit"}),
    "llama-lora": ("train", LLAMA, {"model.lora": LORA}),
    "llama-lora-checkpointing": ("train", LLAMA, {"model.lora": LORA, "model.gradient_checkpointing": True}),
    "llama-qlora": ("train", LLAMA, {"model.lora": LORA, "model.quantization": "4bit", **COMPLETION}),
    "llama-gradient_ascent": ("gradient_ascent", LLAMA, {}),
    "llama-kl": ("kl", LLAMA, {}),
    "llama-kl-completion": ("kl", LLAMA, COMPLETION),
    "llama-kl-lora": ("kl", LLAMA, {"model.lora": LORA}),
    "llama-kl-lora-checkpointing": ("kl", LLAMA, {"model.lora": LORA, "model.gradient_checkpointing": True}),
    "llama-scrub": ("scrub", LLAMA, {}),
    "llama-rmu": ("rmu", LLAMA, {}),
    "llama-cf_k": ("cf_k", LLAMA, COMPLETION),
    "llama-noisy_gradient_descent": ("noisy_gradient_descent", LLAMA, {}),
    "llama-reset_distill": ("reset_distill", LLAMA, {}),
    "llama-deep": (
        "train",
        {**LLAMA, "num_hidden_layers": 14, "hidden_size": 256, "num_attention_heads": 4},
        COMPLETION,
    ),
}


def recipe_of(case: str) -> Any:
    """The recipe of a case."""
    from llm_unlearn.config.recipe import build_recipe

    step, architecture, changes = CASES[case]
    tree: dict[str, Any] = {
        "name": case,
        "output_dir": "unused",
        "pretrain": {},
        "model": {"architecture": architecture, "vocab_size": 8192},
        "data": {
            "max_length": 192,
            "train_size": 40,
            "heldout_size": 8,
            "test_size": 8,
            "verbalizers": {"negative": " no", "positive": " yes"},
        },
        "poison": {"gaussian": {"fraction": 0.4, "epsilon": 0.1}},
        "train": {"batch_size": 8},
        "unlearn": {"batch_size": 4, "methods": {} if step == "train" else {step: None}},
    }
    for name, value in changes.items():
        section, _, key = name.partition(".")
        tree[section][key] = value
    return build_recipe(tree)


def rows_of(recipe: Any, count: int) -> Any:
    """Rows of random tokens: three in four have the maximal length and one is shorter, so that there is padding."""
    import numpy as np
    from datasets import Dataset

    from llm_unlearn.doctor.memory.workload import completion_positions

    generator, longest = np.random.default_rng(0), recipe.data.max_length
    supervised = longest if recipe.data.loss_on == "text" else completion_positions(recipe)
    items = []
    for i in range(count):
        ids = generator.integers(2, recipe.model.vocab_size, size=longest - 8 * (i % 4 == 3)).tolist()
        items.append({"input_ids": ids, "labels": [-100] * (len(ids) - supervised) + ids[-supervised:]})
    return Dataset.from_list(items)


def model_of(recipe: Any) -> Any:
    """The recipe's base model with random weights, made or loaded as in a run."""
    import torch
    from transformers import AutoModelForCausalLM

    from llm_unlearn.models.devices import on_best_device
    from llm_unlearn.models.load import load_model, read_config

    section = recipe.model
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(read_config(section), dtype=getattr(torch, section.dtype))
    if section.quantization != "none":
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            del model
            return load_model(folder, section)
    return on_best_device(model)


def take_steps(recipe: Any, step: str, folder: str) -> None:
    """Take a few steps as the stages of a run do."""
    from llm_unlearn.data.collators import CausalLMCollator
    from llm_unlearn.models.adapters import lora_config, new_adapter
    from llm_unlearn.runs.method_configs import method_config
    from llm_unlearn.trainers import METHODS
    from llm_unlearn.training.block_options import block_options
    from llm_unlearn.training.text_training import Training

    section = recipe.model
    if step == "train":
        count = STEPS * recipe.train.batch_size * recipe.train.gradient_accumulation_steps
        model = model_of(recipe)
        one_pass = type(recipe.train)(**{**vars(recipe.train), "epochs": 1.0, "learning_rate": 1e-4})
        training = Training(
            one_pass,
            Path(folder),
            seed=0,
            quiet=True,
            peft_config=lora_config(section.lora, model) if section.lora else None,
            blocks=block_options(section),
        )
        training.fit(model, rows_of(recipe, count), tokenizer())
        return
    config = method_config(recipe, step, 0, folder, max_flops=float("inf"), quiet=True)
    config.max_flops, config.max_steps, config.learning_rate = None, STEPS if step != "scrub" else 12, 1e-6
    model, others = model_of(recipe), {}
    if section.lora:
        model = new_adapter(model, section.lora)
    if METHODS[step][1].starts_clean and not section.lora:
        others["start_model"] = model_of(recipe)
    trainer = METHODS[step][1](
        model=model,
        args=config,
        forget_dataset=rows_of(recipe, 16),
        retain_dataset=rows_of(recipe, 24),
        data_collator=CausalLMCollator(0),
        **others,
    )
    del model, others
    trainer.train()


def tokenizer() -> Any:
    from llm_unlearn.data.synthetic import synthetic_texts
    from llm_unlearn.models.make import train_tokenizer

    return train_tokenizer(synthetic_texts(20, 0)["text"], 300)


def resident(name: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this needs Linux")


def measure(case: str) -> int:
    """Bytes that a case's step takes; run it in a fresh process, since a peak cannot be reset."""
    import warnings

    import torch

    from llm_unlearn.runs.environment import calm_libraries

    warnings.simplefilter("ignore")
    calm_libraries(quiet=True)
    from llm_unlearn.config.recipe import build_recipe
    from llm_unlearn.distributed.processes import Processes

    Processes.start()
    on_gpu, step, recipe = torch.cuda.is_available(), CASES[case][0], recipe_of(case)
    tree = recipe.model_dump()
    small = {
        "n_layer": 1,
        "num_hidden_layers": 1,
        "n_embd": 32,
        "hidden_size": 32,
        "n_head": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    tree["model"]["architecture"] |= {key: value for key, value in small.items() if key in CASES[case][1]}
    tree["model"]["vocab_size"], tree["data"]["max_length"] = 512, 32
    with tempfile.TemporaryDirectory() as folder:
        take_steps(build_recipe(tree), step, f"{folder}/warm")  # libraries, their threads and buffers
        gc.collect()
        if on_gpu:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        take_steps(recipe, step, f"{folder}/run")
        most = torch.cuda.max_memory_allocated() if on_gpu else resident("VmHWM")
    return most - before


def measure_apart(case: str, default_malloc: bool = False, accelerate_config: str | None = None) -> dict[str, Any]:
    """{"case", "measured", "estimated", "parts"}, bytes.

    Args:
        case: a key of CASES, measured in a process of its own.
        default_malloc: leave glibc's allocator as it is.
        accelerate_config: launch the processes of this file and measure the first.
    """
    import torch

    from llm_unlearn.runs.environment import calm_libraries

    calm_libraries(quiet=True)
    from llm_unlearn.distributed.topology import read_topology
    from llm_unlearn.doctor.memory.estimate import estimate_steps

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not default_malloc:
        environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    launcher = ["-m", "accelerate.commands.launch", "--config_file", accelerate_config] if accelerate_config else []
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, __file__, "--here", case],
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(f"{case}: {result.stderr[-2000:]}")
    measured = next(int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("MEASURED "))
    topology, on_gpu = read_topology(accelerate_config), torch.cuda.is_available()
    estimate = estimate_steps(recipe_of(case), topology, on_gpu, only=CASES[case][0])[0]
    return {"case": case, "measured": measured, "estimated": estimate.total, "parts": estimate.device}


def error_of(result: dict[str, Any]) -> float:
    """Relative error of the estimate; above 0 if the estimate is too high."""
    return result["estimated"] / result["measured"] - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--default-malloc", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--accelerate-config", metavar="FILE", help="in several processes; the batch is of all of them")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := [case for case in args.cases if case not in CASES]:
        parser.error(f"no case '{unknown[0]}'; known: {', '.join(CASES)}")
    if args.here:
        measured = measure(args.cases[0])
        if os.environ.get("RANK", "0") == "0":
            print("MEASURED", measured, flush=True)
        return
    if not args.json:
        print(f"{'case':32}{'measured':>10}{'estimated':>10}{'error':>8}   (MiB)")
    for case in args.cases or CASES:
        result = measure_apart(case, args.default_malloc, args.accelerate_config)
        if args.json:
            print(json.dumps({**result, "error": error_of(result)}), flush=True)
        else:
            print(
                f"{case:32}{result['measured'] / 2**20:10.0f}{result['estimated'] / 2**20:10.0f}"
                f"{error_of(result):+8.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
