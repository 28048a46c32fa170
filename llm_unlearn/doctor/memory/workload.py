"""What is trained, of each kind of data: how to make the model, the task that runs it, rows of the longest length."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_unlearn.config.recipe import Recipe, VisionRecipe
from llm_unlearn.errors import InputError


@dataclass(frozen=True)
class Workload:
    """What the steps of a recipe train.

    Args:
        model: how many blocks, None for all → the model, on tensors without data.
        task: runs the model on a batch.
        collate: makes a batch of rows.
        row: (number of supervised positions, None for those of the recipe's loss) → a row of the longest length.
        depth: how many blocks the model has; 0 for a classifier of images.
        vocabulary: V, the size of the output.
        hidden: how many numbers a block is given of one row.
        completion: how many positions the longest completion has.
        checkpointing: whether activations are checkpointed.
        adapter: whether an adapter trains instead of the model.
    """

    model: Callable[..., Any]
    task: Any
    collate: Any
    row: Callable[..., dict[str, Any]]
    depth: int
    vocabulary: int
    hidden: int = 0
    completion: int = 1
    checkpointing: bool = False
    adapter: bool = False


def is_of_images(recipe: Recipe) -> bool:
    """Whether a recipe is about images; texts otherwise. The doctor asks it nowhere else."""
    return isinstance(recipe, VisionRecipe)


def workload_of(recipe: Recipe) -> Workload:
    """What the recipe's steps train."""
    return _of_images(recipe) if is_of_images(recipe) else _of_texts(recipe)


def _of_texts(recipe: Recipe) -> Workload:
    from llm_unlearn.data.collators import CausalLMCollator
    from llm_unlearn.doctor.memory.dataless import text_model
    from llm_unlearn.models.load import read_config
    from llm_unlearn.tasks.causal_lm import CausalLMTask

    section, length = recipe.model, recipe.data.max_length
    config, completion = read_config(section).get_text_config(), completion_positions(recipe)
    usual = length if recipe.data.loss_on == "text" else completion
    return Workload(
        model=lambda blocks: text_model(section, blocks),
        task=CausalLMTask(pack=False),
        collate=CausalLMCollator(0),
        row=lambda positions=None: text_row(length, min(positions or usual, length)),
        depth=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        hidden=length * config.hidden_size,
        completion=completion,
        checkpointing=section.gradient_checkpointing,
        adapter=section.lora is not None,
    )


def _of_images(recipe: Any) -> Workload:
    from llm_unlearn.doctor.memory.images import DatalessImages
    from llm_unlearn.vision.classifiers import ImageClassifier
    from llm_unlearn.vision.image_task import ImageCollator
    from llm_unlearn.vision.recipe_model import describe_model

    config = describe_model(recipe)
    shape = (config.channels, *config.image_size)
    return Workload(
        model=lambda blocks: ImageClassifier(config).train(),
        task=DatalessImages(),
        collate=ImageCollator(shape),
        row=lambda positions=None: {"pixels": bytes(math.prod(shape)), "label_id": 0},
        depth=0,
        vocabulary=config.num_labels,
    )


def text_row(length: int, positions: int) -> dict[str, list[int]]:
    """A row of so many tokens, the last of them supervised, the very last the answer."""
    labels, mask = [-100] * (length - positions) + [0] * positions, [0] * (length - 1) + [1]
    return {"input_ids": [0] * length, "labels": labels, "completion_mask": mask}


def completion_positions(recipe: Recipe) -> int:
    """Tokens of the longest verbaliser and EOS, by the recipe's tokenizer; where that is not at hand, as many as a
    verbaliser has bytes, which no tokenizer exceeds. Completions that stand in the data may fill max_length.
    """
    most = max(1, recipe.data.max_length - 1)
    if recipe.data.task != "classification":
        return most
    tokenizer = _tokenizer(recipe)

    def count(text: str) -> int:
        return len(text.encode() if tokenizer is None else tokenizer(text, add_special_tokens=False)["input_ids"])

    return min(most, 1 + max(map(count, recipe.data.verbalizers.values())))


def _tokenizer(recipe: Recipe) -> Any:
    from llm_unlearn.models.load import load_tokenizer
    from llm_unlearn.training.pretraining import base_folder

    base = recipe.model.path or base_folder(recipe)
    if recipe.model.path is None and not Path(base).is_dir():
        return None
    try:
        return load_tokenizer(str(base), recipe.model)
    except InputError:  # the config was there, so this is said where the tokenizer is needed
        return None
