"""An evaluator of a handful of rows with every poison, for tests of models that are spread over devices."""

import numpy as np
import pandas as pd
from datasets import Dataset

from llm_unlearn.data.encoding import Encoding
from llm_unlearn.evaluation.placebos import PlaceboSettings
from llm_unlearn.evaluation.text_evaluator import TextEvaluator

WITHOUT_GRADIENTS = ["loss", "zlib", "reference", "min_k", "min_k_plus"]
TEXTS = [
    "the film was good",
    "a very long and dull story about a town",
    "so bad",
    "the actors were fine as was I",
    "nothing happens",
    "I saw it twice and liked it",
    "the end is weak",
    "music, light",
    "it was a bore",
    "well",
]


def rows(texts: list[str], start: int, poison: str = "none") -> Dataset:
    return Dataset.from_list(
        [
            {
                "text": text,
                "prompt": text,
                "completion": " good",
                "label": "good",
                "poison": poison,
                "example_id": start + i,
                "noise_id": start + i if poison == "gaussian" else -1,
            }
            for i, text in enumerate(texts)
        ]
    )


def evaluator(tokenizer, membership: list[str], reference=None) -> TextEvaluator:
    sets = {
        "train": rows(TEXTS[:6], 0, "gaussian"),
        "nonmember": rows(TEXTS[6:], 10),
        "heldout": rows(TEXTS[6:], 10),
        "test": rows(TEXTS[6:], 10),
        "triggered": rows(TEXTS[6:], 10),
    }
    manifest = {
        "forget_ids": [4, 1, 2],
        "gaussian": {"seed": 3, "epsilon": 0.5},
        "trigger": {"phrases": ["was"], "target": "bad", "position": "start"},
    }
    return TextEvaluator(
        sets=sets,
        manifest=manifest,
        batch_size=2,
        tokenizer=tokenizer,
        encoding=Encoding(64),
        verbalizers={"good": " good", "bad": " bad"},
        membership=membership,
        reference=reference,
        loss_rank_draws=9,
        placebo=PlaceboSettings(draws=9, rows=4),
    )


def assert_same_signals(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    assert {"nll", "kl", "gaussian_score", "gaussian_control", "prediction", "mia_min_k_plus"} <= set(ours)
    figures = ours.select_dtypes("number").columns
    np.testing.assert_allclose(ours[figures].to_numpy(float), theirs[figures].to_numpy(float), rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(ours.drop(columns=figures), theirs.drop(columns=figures))
