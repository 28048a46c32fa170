"""What trains: the modules that a LoRA adapter finds, and whether gradients reach it behind checkpointed blocks."""

from typing import TYPE_CHECKING, Any

from llm_unlearn.doctor.finding import Finding
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.config.model_sections import ModelSection

LENGTH = 8  # tokens of the rows on which gradients are looked for


def check_adapter(section: "ModelSection") -> list[Finding]:
    """All findings on the adapter of a recipe's model; none where it has no adapter.

    Raises:
        InputError: the model's config cannot be read.
    """
    from llm_unlearn.doctor.memory.dataless import text_model, without_data
    from llm_unlearn.models.bare import bare_model
    from llm_unlearn.models.lora_targets import adapted, default_targets, read_past_forward

    if section.lora is None:
        return []
    with without_data():
        base = bare_model(section)
        modules = {name: type(module).__name__ for name, module in base.named_modules() if name}
        linear = {name.rpartition(".")[2] for name, kind in modules.items() if kind in ("Linear", "Conv1D")}
        remedy = f"choose model.lora.target_modules from {', '.join(sorted(n for n in linear if 'head' not in n))}"
        wanted = section.lora.target_modules or []
        missing = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in modules)]
        try:
            model = text_model(section, blocks=2)
        except InputError as error:
            return [Finding("lora", "problem", str(error), remedy)]
        findings = []
        if missing:
            what = f"model.lora.target_modules: no module is called {' or '.join(missing)}; the others get an adapter"
            findings.append(Finding("lora", "warning", what, remedy))
        skipped = {name.rpartition(".")[2] for name in read_past_forward(base)} & {w.rpartition(".")[2] for w in wanted}
        if skipped:
            what = f"{', '.join(sorted(skipped))}: its weight is read past the adapter, which is then without effect"
            findings.append(Finding("lora", "warning", f"model.lora.target_modules: {what}", remedy))
        how = "" if wanted else f" ({default_targets(base).origin})"
        findings.append(Finding("lora", "ok", f"the adapter sits on {', '.join(adapted(model))}{how}"))
        return [*findings, check_gradients(model)] if section.gradient_checkpointing else findings


def check_gradients(model: Any) -> Finding:
    """Whether a backward pass gives every weight that trains a gradient.

    Under gradient checkpointing a block runs again in the backward pass. Where all its inputs are frozen, the reentrant
    kind passes no gradient on, and the adapter silently stays as it is. So the embedding's output is made to ask for
    one (enable_input_require_grads).

    Args:
        model: without data, of two blocks say.
    """
    try:
        without = weights_without_gradient(model)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if "does not require grad" not in reason:  # what torch says where the loss depends on nothing that trains
            return Finding("checkpointing", "note", f"the gradients of the adapter could not be checked: {reason}")
        without = ["any of them"]
    if without:
        others = f" and {len(without) - 1} other weights" if len(without) > 1 else ""
        what = f"under gradient checkpointing no gradient reaches {without[0]}{others}, so training would not change it"
        return Finding("checkpointing", "problem", what, "model.gradient_checkpointing=false")
    what = "gradients reach every weight of the adapter behind checkpointed blocks (tried on two blocks without data)"
    return Finding("checkpointing", "ok", what)


def weights_without_gradient(model: Any) -> list[str]:
    """Names of the weights that train and get no gradient in a step. Call in `without_data()`."""
    from llm_unlearn.data.collators import CausalLMCollator
    from llm_unlearn.doctor.memory.workload import text_row
    from llm_unlearn.tasks.causal_lm import CausalLMTask

    batch = CausalLMCollator(0)([text_row(LENGTH, LENGTH)])
    CausalLMTask(pack=False).compute(model.train(), batch, lambda output: output.mean_nll()).backward()
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
