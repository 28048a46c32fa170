"""Token canaries on a small model: exact where it never saw the strings, found where it was trained on them."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import kstest

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.data.synthetic import synthetic_texts
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.evaluation.canary_ranks import canary_rank_scores, check_strings
from llm_unlearn.metrics import gaussian_test
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.poisons.canary_words import WORDS
from llm_unlearn.poisons.token_canaries import plant_token_canaries, with_string
from llm_unlearn.tasks.causal_lm import CausalLMTask

pytestmark = pytest.mark.unit

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 48, "n_positions": 128}
TEXTS = synthetic_texts(80, 0)["text"]
TOKENIZER = train_tokenizer([*TEXTS, " ".join(WORDS)], 600)


def planted(place: str = "text", audit_share: float = 0.5) -> tuple[Dataset, dict]:
    rows = Dataset.from_dict({"text": [" ".join(t.split()[:8]) for t in TEXTS], "label": [" good"] * len(TEXTS)})
    rows, tokens = plant_token_canaries(rows, fraction=0.5, seed=0, place=place, secret="s", audit_share=audit_share)
    rows = rows.add_column("example_id", list(range(len(rows))))
    return rows.rename_columns({"text": "prompt", "label": "completion"}), tokens


def losses(model: torch.nn.Module, rows: Dataset) -> np.ndarray:
    encoded = list(encode_rows(rows, TOKENIZER, Encoding()).select_columns(["input_ids", "labels"]))
    found, task = [], CausalLMTask()
    with torch.no_grad():
        for positions, batch in batches(encoded, CausalLMCollator(0), 64, torch.device("cpu")):
            found.append((positions, task.compute(model, batch, lambda said: -said.log_prob())))
    return scatter(len(encoded), found).numpy()


@pytest.fixture(scope="module")
def untrained() -> torch.nn.Module:
    return make_model(GPT2, TOKENIZER, seed=0).eval()


@cache
def trained(place: str) -> torch.nn.Module:
    """After 12 epochs on the rows."""
    rows, _ = planted(place)
    model = make_model(GPT2, TOKENIZER, seed=0).eval()
    encoded = list(encode_rows(rows, TOKENIZER, Encoding()).select_columns(["input_ids", "labels"]))
    optimizer, task = torch.optim.AdamW(model.parameters(), lr=4e-3), CausalLMTask()
    for epoch in range(12):
        order = np.random.default_rng(epoch).permutation(len(encoded))
        for start in range(0, len(order), 8):
            batch = CausalLMCollator(0)([encoded[i] for i in order[start : start + 8]])
            task.compute(model, batch, lambda said: -said.log_prob()).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("place", ["text", "answer"])
def test_strings_that_were_trained_on_are_found_and_no_others(untrained, place):
    rows, tokens = planted(place)
    canaries = rows.select(tokens["example_ids"])
    before = canary_rank_scores(canaries, tokens, partial(losses, untrained), 19)
    after = canary_rank_scores(canaries, tokens, partial(losses, trained(place)), 19)
    assert before.shape == after.shape == (40, 2)
    assert gaussian_test(after[:, 0]).p_value < 1e-6 and gaussian_test(after[:, 0]).mean > 0.8
    for exact in (before[:, 0], before[:, 1], after[:, 1]):
        assert kstest(exact, "norm").pvalue > 0.001 and gaussian_test(exact).p_value > 0.001


def test_a_model_that_was_trained_on_other_strings_is_exact(untrained):
    """What it knows of such strings in general it knows of the fresh ones too."""
    rows, tokens = planted()
    model = trained("text")
    others = {**tokens, "seed": tokens["seed"] + 1}
    canaries = rows.select(tokens["example_ids"])
    moved = [
        with_string(row, string := " ".join(words)) | {"canary": string}
        for row, words in zip(canaries, np.random.default_rng(0).choice(WORDS, (len(canaries), 6)), strict=True)
    ]
    scores = canary_rank_scores(Dataset.from_list(moved), others, partial(losses, model), 19)
    assert kstest(scores[:, 0], "norm").pvalue > 0.001 and gaussian_test(scores[:, 0]).p_value > 0.001


def test_scores_do_not_depend_on_the_other_canaries_and_a_collapsed_model_has_none(untrained):
    rows, tokens = planted()
    canaries = rows.select(tokens["example_ids"][:6])
    scores = canary_rank_scores(canaries, tokens, partial(losses, untrained), 9)
    alone = canary_rank_scores(canaries.select([4, 2]), tokens, partial(losses, untrained), 9)
    assert np.allclose(scores[[4, 2]], alone)
    none = canary_rank_scores(canaries, tokens, lambda variants: np.full(len(variants), np.nan), 9)
    assert np.isnan(none).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"canary": "able above xyz"}, "none of the words"),
        ({"canary": "able above"}, "under three words"),
        ({"canary": "able above across"}, "neither in the text"),
        ({}, "share"),
    ],
)
def test_strings_that_would_make_the_test_inexact_are_refused(change, words):
    row = {"example_id": 3, "prompt": "a text able about above", "completion": " good", "canary": "able about above"}
    check_strings(Dataset.from_list([row]), list(WORDS), "m.json.tokens")
    with pytest.raises(InputError, match=words):
        check_strings(Dataset.from_list([row | change, row | change]), list(WORDS), "m.json.tokens")
