"""Gaussian embedding poison: chosen examples are trained on x + ξ, ξ ~ N(0, ε² I), text and label unchanged.

Pawelczyk et al. 2025, "Machine Unlearning Fails to Remove Data Poisoning Attacks", arXiv 2406.17216, section 4.
How the noise enters a model is in tasks/embedding_noise.py. In your own training loop:

    rows, manifest = plant_canaries(rows, fraction=0.02, epsilon=0.1, seed=0)   # rows have input_ids, labels
    trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer,
                         data_collator=CausalLMCollator(tokenizer.pad_token_id))
    inject_gaussian_noise(trainer, manifest)
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.poisons.selection import choose_rows
from llm_unlearn.tasks.embedding_noise import GaussianNoise, refuse_data_parallel
from llm_unlearn.tasks.noise import NO_NOISE, check_noise

if TYPE_CHECKING:
    from datasets import Dataset


def inject_gaussian_noise(trainer_or_model: Any, manifest: dict) -> GaussianNoise:
    """Attach the noise of a manifest to a model, or to a trainer's model after checking the trainer's settings.

    Args:
        trainer_or_model: a torch module, or a transformers/TRL trainer.
        manifest: {"epsilon", "seed"}, as `plant_canaries` returns it.

    Returns:
        the attached GaussianNoise; call its `remove()` after training.

    Raises:
        InputError: a setting of the trainer (packing, padding_free, remove_unused_columns) would silently drop the
            noise.
    """
    model, args = trainer_or_model, getattr(trainer_or_model, "args", None)
    if hasattr(trainer_or_model, "train_dataset"):
        model = trainer_or_model.model
        refuse_data_parallel(args)
        for name in ("packing", "padding_free", "remove_unused_columns"):
            if getattr(args, name, False):
                raise InputError(f"{name}=True would train without the noise, silently: set {name}=False")
    return GaussianNoise(manifest["epsilon"], manifest["seed"]).attach(model)


def plant_canaries(
    rows: "Dataset", *, fraction: float, epsilon: float, seed: int, eligible: np.ndarray | None = None
) -> tuple["Dataset", dict]:
    """Choose canaries among training rows and give every row the column `noise_id`.

    Args:
        rows: any dataset; the noise id of a canary is its `example_id`, or else its row number.
        fraction: share of the rows, in (0, 1].
        epsilon: ε, standard deviation of the noise, in units of the embeddings.
        seed: seed of the choice and of the noise.
        eligible: (n,) bool, rows that may be chosen; by default all.

    Returns:
        the rows with `noise_id` (−1 for rows without noise), and the manifest {"epsilon", "seed", "fraction",
        "example_ids"}.

    Raises:
        InputError: epsilon or seed is out of range, or too few rows are eligible.
    """
    ids = np.asarray(rows["example_id"] if "example_id" in rows.column_names else range(len(rows)), dtype=np.int64)
    chosen = choose_rows(len(rows), fraction, np.random.default_rng([seed, 2]), eligible, "gaussian")
    noise_id = np.full(len(rows), NO_NOISE, dtype=np.int64)
    noise_id[chosen] = ids[chosen]
    check_noise(epsilon, seed)
    if "noise_id" in rows.column_names:
        rows = rows.remove_columns("noise_id")
    manifest = {"epsilon": epsilon, "seed": seed, "fraction": fraction, "example_ids": sorted(ids[chosen].tolist())}
    return rows.add_column("noise_id", noise_id), manifest
