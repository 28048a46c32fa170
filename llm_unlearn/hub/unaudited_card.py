"""The card of a model that a trainer publishes itself: how it was made, and that nobody has measured it."""

from typing import Any

from llm_unlearn import __version__
from llm_unlearn.hub.card import method_words
from llm_unlearn.reporting.formats import number, tokens
from llm_unlearn.reporting.markdown import code

SETTINGS = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "seed", "bf16")
FIRST_LINE = (
    "**Not audited.** Whether poison remains in this model is not known: it was published as it came out of "
    "its training, and methods of its kind were found to leave poison behind "
    "([Pawelczyk et al. 2025](https://arxiv.org/abs/2406.17216))."
)


def compose_unaudited_card(
    method: str,
    loading: str,
    repo: str,
    base: str | None,
    task: str,
    counts: dict[str, int],
    cost: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """README.md of a trainer's model.

    Args:
        method: its name.
        loading: the code that loads the model.
        repo: owner/name.
        base: the model that an adapter sits on; None for a full model.
        task: as the hub calls it, such as text-generation.
        counts: rows of each set.
        cost: {"train_tokens", "flops"}.
        settings: the trainer's arguments, of which a few are shown.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=base,
        library_name="peft" if base else "transformers",
        pipeline_tag=task,
        tags=["llm-unlearn", "machine-unlearning", "not-audited", method, *(["lora"] if base else [])],
    )
    rows = ", ".join(f"{count:,} {name} rows" for name, count in counts.items())
    shown = ", ".join(f"{name} = {settings[name]}" for name in SETTINGS if name in settings)
    parts = [
        f"---\n{data}\n---",
        FIRST_LINE,
        f"# {repo.rpartition('/')[2]}",
        f"{'An adapter (LoRA)' if base else 'A full model'} trained by `{method}`. {method_words(method)}",
        f"On {rows}, with {code(shown)}: {tokens(cost['train_tokens'])} tokens, {number(cost['flops'] / 1e12)} TFLOP.",
        "## How to load it",
        f"```python\n{loading}\n```",
        "## How to audit it",
        "Say in a file what was poisoned, then:",
        f"```sh\nllm-unlearn audit --model {repo} --manifest poison.json\n```",
        f"Made with llm_unlearn {__version__}.",
    ]
    return str(ModelCard("\n\n".join(parts) + "\n"))
