"""What trains: the modules that a LoRA adapter finds, and whether gradients reach it behind checkpointed blocks."""

from typing import TYPE_CHECKING, Any

from llm_unlearn.doctor.finding import Finding
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from llm_unlearn.config.sections import ModelSection

LENGTH = 8  # tokens of the rows on which gradients are looked for


def check_adapter(section: "ModelSection") -> list[Finding]:
    """All findings on the adapter of a recipe's model; none where it has no adapter.

    Raises:
        InputError: the model's config cannot be read.
    """
    from llm_unlearn.doctor.memory.dataless import bare_model, text_model

    if section.lora is None:
        return []
    modules = [(name, module) for name, module in bare_model(section).named_modules() if name]
    missing = [
        target
        for target in section.lora.target_modules or []
        if not any(name == target or name.endswith(f".{target}") for name, _ in modules)
    ]
    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in modules
            if type(module).__name__ in ("Linear", "Conv1D") and "head" not in name
        }
    )
    remedy = f"choose model.lora.target_modules from {', '.join(linear)}"
    if missing and len(missing) == len(section.lora.target_modules):
        return [
            Finding(
                "lora",
                "problem",
                f"model.lora.target_modules: no module of this model is called {' or '.join(missing)}",
                remedy,
            )
        ]
    try:
        model = text_model(section, with_reference=False, blocks=2)
    except InputError as error:  # where null leaves the choice to peft, and it has none for this architecture
        return [Finding("lora", "problem", str(error), remedy)]
    findings = []
    if missing:
        findings.append(
            Finding(
                "lora",
                "warning",
                f"model.lora.target_modules: {', '.join(missing)} match no module and are passed over",
                remedy,
            )
        )
    chosen = sorted(
        {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A." in name}
    )
    findings.append(
        Finding(
            "lora",
            "ok",
            f"the adapter sits on {', '.join(chosen)}"
            + ("" if section.lora.target_modules else ", peft's choice for this architecture"),
        )
    )
    if section.gradient_checkpointing:
        findings.append(check_gradients(model))
    return findings


def check_gradients(model: "nn.Module") -> Finding:
    """Whether a backward pass gives every weight that trains a gradient.

    Under gradient checkpointing a block is run again in the backward pass; where all that enters it is frozen, the
    reentrant kind would pass no gradient on, and the adapter stay as it is, silently. So the embedding's output is made
    to ask for one (enable_input_require_grads).

    Args:
        model: on the device meta, of two blocks say.
    """
    try:
        without = weights_without_gradient(model)
    except RuntimeError as error:
        if "does not require grad" not in str(error):  # what torch says where the loss depends on nothing that trains
            return Finding(
                "checkpointing",
                "note",
                f"whether gradients reach the adapter could not be tried: {str(error).splitlines()[0]}",
            )
        without = ["any of them"]
    if without:
        return Finding(
            "checkpointing",
            "problem",
            f"under gradient checkpointing no gradient reaches {without[0]}"
            + (f" and {len(without) - 1} other weights" if len(without) > 1 else "")
            + ", which would stay as it is",
            "model.gradient_checkpointing=false",
        )
    return Finding(
        "checkpointing",
        "ok",
        "gradients reach every weight of the adapter behind checkpointed blocks: the "
        "embedding's output is made to ask for one (tried on a copy of two blocks without data)",
    )


def weights_without_gradient(model: "nn.Module") -> list[str]:
    """Names of the weights that train and get no gradient in a step."""
    from llm_unlearn.doctor.memory.dataless import DatalessTexts, off_meta
    from llm_unlearn.doctor.memory.ledger import without_data

    with without_data():
        model = off_meta(model).train()
        batch: dict[str, Any] = {"positions": (LENGTH - 1,)}
        DatalessTexts(LENGTH).compute(model, batch, lambda found: found.mean_nll()).backward()
        return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
