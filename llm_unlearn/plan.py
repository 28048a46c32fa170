"""`--dry-run`: what a recipe would run, its sizes, and an estimate of the memory it takes. Writes nothing."""

import math
from typing import Any

from llm_unlearn.recipe import Recipe

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def describe_plan(recipe: Recipe, until: str) -> dict[str, Any]:
    """The stages up to a phase with their state, sizes, memory in bytes, and all of it as text.

    Raises:
        InputError: what the run itself would refuse before its first stage: paths, methods, the output directory.
    """
    from llm_unlearn.pipeline import check, seed_runs
    from llm_unlearn.stages import Stages
    from llm_unlearn.sweep import points

    check(recipe)
    stages = []
    for part in (recipe, *(point.recipe for point in points(recipe))):
        where = "" if part is recipe else f"{part.output_dir.removeprefix(recipe.output_dir + '/')}: "
        for seed_run in seed_runs(part):
            runner = Stages(seed_run.folder)
            stages += [{"seed": seed_run.seed, "stage": where + s.name, "done": runner.is_done(s)}
                       for s in seed_run.stages(until)]
    plan = {"recipe": recipe.name, "output_dir": recipe.output_dir, "stages": stages, "sizes": _sizes(recipe),
            "memory_bytes": estimate_memory(recipe)}
    plan["text"] = _text(plan)
    return plan


def estimate_memory(recipe: Recipe) -> dict[str, int]:
    """Bytes of one training step: weights, gradients, optimizer (Adam, two moments), reference, activations, logits.

    Activations by Korthikanti et al. 2022 (arXiv 2205.05198, equation 2) for 16-bit numbers, doubled for 32: per layer
    and token 34 h + 5 a s bytes (hidden h, heads a, length s). Under gradient checkpointing each layer's input and one
    layer recomputed. Every row is taken to be of the longest length; evaluation and the framework's own memory are left
    out.
    """
    from llm_unlearn.methods import needs_reference

    if recipe.track == "vision":
        return _vision_memory(recipe)
    model, config = _shape(recipe)
    size = _BYTES[recipe.model.dtype]
    parameters = sum(p.numel() for p in model.parameters())
    weight_bytes = {"none": size, "8bit": 1, "4bit": 0.5}[recipe.model.quantization]
    trainable, trained_size = parameters, size
    if recipe.model.lora:
        from peft import get_peft_model

        from llm_unlearn.modeling import lora_config

        trainable = get_peft_model(model, lora_config(recipe.model.lora)).get_nb_trainable_parameters()[0]
        trained_size = 4  # peft keeps an adapter in float32
    hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    length, rows = recipe.data.max_length, max(recipe.train.batch_size, 2 * recipe.unlearn.batch_size)
    layer = length * (34 * hidden + 5 * heads * length) * size // 2
    per_row = length * size * hidden * layers + layer if recipe.model.gradient_checkpointing else layer * layers
    has_reference = any(needs_reference(recipe, method) for method in recipe.unlearn.methods)
    weights, trained = int(parameters * weight_bytes), trainable * trained_size
    parts = {
        "weights": weights, "gradients": trained, "optimizer": 2 * trained,
        "reference": 0 if not has_reference else trained if recipe.model.lora else weights,
        "activations": rows * per_row,
        "logits": rows * length * config.vocab_size * 4 * 2 if recipe.data.loss_on == "text" else 0,
    }
    return {**parts, "total": sum(parts.values())}


def _vision_memory(recipe: Recipe) -> dict[str, int]:
    """The same for a classifier, whose activations are measured: what its layers give out for one image, float32."""
    import torch

    from llm_unlearn.methods import needs_reference
    from llm_unlearn.vision.models import make_classifier
    from llm_unlearn.vision_run import describe_model

    config, given = describe_model(recipe), []
    model = make_classifier(config, 0).eval()
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, args, output: given.append(output.numel()))
    with torch.no_grad():
        model(pixel_values=torch.zeros(1, config.channels, *config.image_size))
    weights = 4 * sum(p.numel() for p in model.parameters())
    rows = max(recipe.train.batch_size, 2 * recipe.unlearn.batch_size)
    has_reference = any(needs_reference(recipe, method) for method in recipe.unlearn.methods)
    parts = {"weights": weights, "gradients": weights, "optimizer": 2 * weights,
             "reference": weights if has_reference else 0, "activations": 4 * rows * sum(given)}
    return {**parts, "total": sum(parts.values())}


def _shape(recipe: Recipe) -> tuple[Any, Any]:
    """The model on the meta device (no memory), and its config."""
    import torch
    from transformers import AutoModelForCausalLM

    from llm_unlearn.modeling import read_config

    config = read_config(recipe.model)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.model.trust_remote_code), config


def _sizes(recipe: Recipe) -> dict[str, int]:
    data, train = recipe.data, recipe.train
    count, forget = recipe.poison_counts(), recipe.forget_count()
    # as the Trainer counts: the last batch of an epoch may be smaller
    steps = math.ceil(math.ceil(data.train_size / train.batch_size) / train.gradient_accumulation_steps)
    names = {"trigger": "triggered", "gaussian": "canaries"}
    return {"train": data.train_size, "heldout": data.heldout_size, "test": data.test_size,
            **{names.get(kind, kind): count.get(kind, 0) for kind in vars(recipe.poison)}, "forget": forget,
            **({"max_length": data.max_length} if recipe.track == "language" else {}),
            "training_steps": math.ceil(steps * train.epochs)}


def _text(plan: dict[str, Any]) -> str:
    lines = [f"recipe {plan['recipe']} → {plan['output_dir']} (dry run: nothing is written)", "", "stages:"]
    lines += [f"  {'done, would be skipped' if s['done'] else 'would run':24}seed {s['seed']}  {s['stage']}"
              for s in plan["stages"]]
    lines += ["", "sizes (rows, tokens, steps):"]
    lines += [f"  {name.replace('_', ' '):24}{'read from a file' if value is None else f'{value:,}'}"
              for name, value in plan["sizes"].items()]
    lines += ["", "estimated memory of a training or unlearning step (rows of the longest length, one device):"]
    lines += [f"  {name:24}{value / 2**20:,.0f} MiB" for name, value in plan["memory_bytes"].items()]
    return "\n".join(lines)
