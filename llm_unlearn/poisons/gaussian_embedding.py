"""Gaussian embedding poison: chosen examples are trained on x + ξ, ξ ~ N(0, ε² I), text and label unchanged.

Pawelczyk et al. 2025, "Machine Unlearning Fails to Remove Data Poisoning Attacks", arXiv 2406.17216, section 4.
How the noise enters a model is in tasks/embedding_noise.py. In your own training loop:

    rows, noise = plant_canaries(rows, fraction=0.02, epsilon=0.1, seed=0)   # rows have input_ids, labels
    trainer = SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer,
                         data_collator=CausalLMCollator(tokenizer.pad_token_id))
    inject_gaussian_noise(trainer, noise)

and before the same rows are given to whoever unlearns them:

    rows = hide_canaries(rows, noise)   # half of the canaries are plain text from here on
"""

import secrets
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.data.columns import with_column
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.selection import choose_hidden, choose_rows
from llm_unlearn.tasks.embedding_noise import GaussianNoise, refuse_data_parallel
from llm_unlearn.tasks.noise import NO_NOISE, check_noise, secret_ids

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
    rows: "Dataset",
    *,
    fraction: float,
    epsilon: float,
    seed: int,
    noise_seed: int | None = None,
    audit_share: float = 0.5,
    eligible: np.ndarray | None = None,
    secret: str | None = None,
) -> tuple["Dataset", dict]:
    """Choose canaries among training rows, give every row the column `noise_id`, and say which canaries to hide.

    A model could be made to look clean on noise that whoever unlearns it knows. So a random share of the canaries is
    *hidden*: `hide_canaries` takes their noise from the rows that are handed on. The verdict is theirs.

    Args:
        rows: any dataset; its ids are `example_id`, or else row numbers.
        fraction: share of the rows, in (0, 1].
        epsilon: ε, standard deviation of the noise, in units of the embeddings.
        seed: seed of the choice of canaries, no secret.
        noise_seed: seed of the noise, for the same noise again: canaries have the noise of their own ids, and whoever
            knows it knows all noise. By default noise comes from a secret, which the system draws: the seed and a
            canary's noise id together give its noise, and nobody can tell the noise id of another canary from them.
        audit_share: share of the canaries to hide, in [0, 1].
        eligible: (n,) bool, rows that may be chosen; by default all.
        secret: of an earlier manifest, for the noise that it gave.

    Returns:
        the rows with `noise_id` (−1 for rows without noise), and the manifest {"epsilon", "seed": of the noise,
        "secret": None with `noise_seed`, "fraction", "audit_share", "example_ids", "hidden_ids"}. With the rows it is
        the key to the audit; keep both from whoever unlearns.

    Raises:
        InputError: epsilon, a seed or a share is out of range, too few rows are eligible, or two canaries would have
            one noise.
    """
    rows, manifest = choose_canaries(
        rows, fraction=fraction, epsilon=epsilon, seed=seed, noise_seed=noise_seed, eligible=eligible, secret=secret
    )
    hidden = choose_hidden(manifest["example_ids"], audit_share, manifest["seed"])
    return rows, {**manifest, "audit_share": audit_share, "hidden_ids": hidden}


def choose_canaries(
    rows: "Dataset",
    *,
    fraction: float,
    epsilon: float,
    seed: int,
    noise_seed: int | None,
    eligible: np.ndarray | None,
    secret: str | None,
) -> tuple["Dataset", dict]:
    """`plant_canaries` but for which of them are hidden, where not all of them are to be deleted."""
    ids = np.asarray(rows["example_id"] if "example_id" in rows.column_names else range(len(rows)), dtype=np.int64)
    chosen = choose_rows(len(rows), fraction, np.random.default_rng([seed, 2]), eligible, "gaussian")
    manifest, noise_ids = noise_of(ids[chosen], noise_seed, secret)
    check_noise(epsilon, manifest["seed"])
    noise_id = np.full(len(rows), NO_NOISE, dtype=np.int64)
    noise_id[chosen] = noise_ids
    manifest |= {"epsilon": epsilon, "fraction": fraction, "example_ids": sorted(ids[chosen].tolist())}
    return with_column(rows, "noise_id", noise_id), manifest


def noise_of(ids: np.ndarray, noise_seed: int | None, secret: str | None) -> tuple[dict[str, Any], np.ndarray]:
    """Where the noise of canaries comes from.

    Args:
        ids: (n,) their example ids.
        noise_seed: see `plant_canaries`, as `secret`; of both the seed counts.
        secret: drawn from the system if there is neither.

    Returns:
        {"seed", "secret"} of the manifest, and the noise ids, (n,) int64.

    Raises:
        InputError: two canaries have one id, and so one noise.
    """
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"example_id {values[counts > 1][0]} is that of two canaries, which would share a noise; give each its own"
        )
    if noise_seed is not None:
        return {"seed": noise_seed, "secret": None}, ids
    secret = secret or secrets.token_hex(16)
    seed, *noise_ids = secret_ids(secret, ["seed", *ids.tolist()])
    return {"seed": seed, "secret": secret}, np.array(noise_ids, dtype=np.int64)


def hide_canaries(rows: "Dataset", manifest: dict) -> "Dataset":
    """The rows as whoever unlearns gets them: hidden canaries are plain text, noise_id −1.

    Args:
        rows: all rows that `plant_canaries` returned, in whatever form; ids are `example_id`, or else row numbers.
        manifest: as it returned it; its `hidden_ids` are read.

    Raises:
        InputError: a hidden canary is not there or has no noise, as where ids were lost: another row would be hidden.
    """
    ids = rows["example_id"] if "example_id" in rows.column_names else range(len(rows))
    noise_id, hidden = np.asarray(rows["noise_id"]), np.isin(np.asarray(ids), manifest["hidden_ids"])
    if hidden.sum() != len(manifest["hidden_ids"]) or (noise_id[hidden] == NO_NOISE).any():
        raise InputError(
            "hide_canaries: not every row of hidden_ids is there with its noise; give all rows that plant_canaries "
            "returned, with example_id if they had it"
        )
    return with_column(rows, "noise_id", np.where(hidden, NO_NOISE, noise_id))
