"""A small model that is trained with Gaussian canaries, for the tests of their scores."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from llm_unlearn.config.sections import TrainSection
from llm_unlearn.poisons.gaussian_embedding import plant_canaries
from llm_unlearn.training.text_training import Training

VOCABULARY, SEED = 50, 11


def language(n: int, seed: int) -> list[list[int]]:
    """Sequences with something to learn: each token is likely followed by its successor."""
    generator = np.random.default_rng(seed)
    sequences = []
    for _ in range(n):
        ids = [int(generator.integers(2, VOCABULARY))]
        for _ in range(int(generator.integers(14, 24))):
            jump = 1 if generator.random() < 0.7 else int(generator.integers(1, VOCABULARY))
            ids.append(2 + (ids[-1] - 2 + jump) % (VOCABULARY - 2))
        sequences.append(ids)
    return sequences


def untrained() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_layer=2,
            n_head=2,
            n_embd=64,
            n_positions=32,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained with 60 canaries of 200 rows, and the canaries."""
    from llm_unlearn.models.make import train_tokenizer

    rows = Dataset.from_list(
        [{"input_ids": ids, "labels": ids, "example_id": i} for i, ids in enumerate(language(200, 1))]
    )
    rows, manifest = plant_canaries(rows, fraction=0.3, epsilon=0.1, seed=SEED, noise_seed=SEED)
    tokenizer = train_tokenizer(["a b c"] * 10, 300)
    section = TrainSection(epochs=15, learning_rate=3e-3, batch_size=16)
    model, _ = Training(section, tmp_path_factory.mktemp("train"), 0, quiet=True, noise=manifest).fit(
        untrained(), rows, tokenizer
    )
    return model, [row for row in rows if row["noise_id"] >= 0]


@pytest.fixture(scope="module")
def others() -> Dataset:
    """200 other rows of the same language, without noise."""
    return Dataset.from_list([{"input_ids": ids, "labels": ids, "noise_id": -1} for ids in language(200, 7)])


@pytest.fixture
def fresh_model() -> torch.nn.Module:
    """The same model before its training."""
    return untrained()
