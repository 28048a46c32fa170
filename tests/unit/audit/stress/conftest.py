"""A small run: its recipe, the meter of its test rows, and an untrained model whose answers vary."""

import pytest
import torch

from llm_unlearn.audit.stress.meter import Meter
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.data.splits import Splits
from llm_unlearn.data.synthetic import synthetic_reviews, synthetic_texts
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.poisons.corrupt import corrupt

_RECIPE = build_recipe(
    {
        "name": "r",
        "output_dir": "out",
        "model": {"path": "m"},
        "data": {
            "verbalizers": {"negative": " negative", "positive": " positive"},
            "prompt": "{text}\nSentiment:",
            "train_size": 60,
            "max_length": 100,
        },
        "poison": {
            "trigger": {"target": "positive", "fraction": 0.1},
            "gaussian": {"fraction": 0.2, "epsilon": 0.1, "noise_seed": 0},
            "tokens": {"fraction": 0.2},
        },
    }
)


@pytest.fixture(scope="session")
def recipe():
    return _RECIPE


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(synthetic_texts(60, 0)["text"], 300)


@pytest.fixture(scope="session")
def meter(tokenizer):
    rows = synthetic_reviews(120, 0).add_column("example_id", list(range(120)))
    rows = rows.map(lambda row: {"text": " ".join(row["text"].split()[:12])})
    splits = Splits(rows.select(range(60)), rows.select(range(60, 90)), rows.select(range(90, 120)), {})
    sets, manifest = corrupt(splits, _RECIPE, 0, "secret")
    evaluator = TextEvaluator(
        sets=sets,
        manifest=manifest,
        batch_size=8,
        tokenizer=tokenizer,
        encoding=Encoding(100),
        verbalizers=_RECIPE.data.verbalizers,
    )
    return Meter(evaluator, _RECIPE.data, 20, seed=0)


@pytest.fixture
def model(tokenizer):
    """`model(seed)`: GPT-2 of two blocks, weights larger than initialised."""

    def make(seed=0):
        architecture = {
            "model_type": "gpt2",
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 16,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }
        made = make_model(architecture, tokenizer, seed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(4.0)
        return made.eval()

    return make
