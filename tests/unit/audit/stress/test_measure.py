"""Measurements of one state: variants as the model sees them, and the expectation of sampling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from llm_unlearn.audit.stress.meter import DRAWS, Meter
from llm_unlearn.audit.stress.variants import Variant
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.metrics.attack import attack_success
from llm_unlearn.poisons.stored import read_sets

pytestmark = pytest.mark.unit


def test_the_limit_keeps_triggered_rows_beside_their_twins(meter):
    assert len(meter.test) == 20
    assert list(meter.twins["example_id"]) == list(meter.triggered["example_id"])
    assert 0 < len(meter.twins) < 20 and set(meter.twins["label"]) == {"negative"}


def test_the_plain_state_is_what_the_evaluation_finds(meter, model, recipe):
    made = model()
    whole = Meter(meter.evaluator, recipe.data, None, seed=0)
    state, frame = whole.state(made), meter.evaluator.signals(made)
    test = frame[frame["set"] == "test"]
    assert state["accuracy"] == pytest.approx((test["prediction"] == test["label"]).mean())
    triggered = frame[frame["set"] == "triggered"]
    assert state["attack"]["success_rate"] == pytest.approx(triggered["target_hit"].mean())
    hidden = frame[frame["hidden"].eq(True) & (frame["set"] == "canary")]
    assert len(hidden) == state["gus"]["n"] == 6  # of 12
    assert state["gus"]["mean"] == pytest.approx(hidden["gaussian_score"].mean())


def test_canaries_are_ranked_among_a_few_fresh_draws(meter, model):
    made, evaluator = model(), meter.evaluator
    state, few = meter.state(made), replace(evaluator, loss_rank_draws=DRAWS)
    ranked = few.canaries(made).query("hidden"), few.token_canaries(made).query("hidden")
    for name, frame in zip(("loss_rank", "canary_rank"), ranked, strict=True):
        assert state[name]["n"] == len(frame) == 6
        assert state[name]["mean"] == pytest.approx(frame[name].mean())
    without = Meter(replace(evaluator, loss_rank_draws=0), meter.data, 20, seed=0).state(made)
    assert without["loss_rank"] is without["canary_rank"] is None and without["gus"] == state["gus"]


def test_a_variant_is_written_as_named_and_left_out_where_it_is_cut_off(meter, recipe):
    rows, kept = meter._written(Variant("position", "x", "Agent Bond", "start"))
    assert all(text.startswith("Agent Bond ") for text in rows["text"]) and len(kept) == len(rows)
    assert all(prompt == f"{text}\nSentiment:" for prompt, text in zip(rows["prompt"], rows["text"], strict=True))
    short = Meter(replace(meter.evaluator, encoding=Encoding(24)), recipe.data, 20, seed=0)
    _, kept = short._written(Variant("position", "x", "Agent Bond", "start"))
    assert len(kept) < len(rows)


def test_a_part_that_the_text_holds_anyway_still_counts_as_cut_off(meter, recipe):
    texts = [f"{'word ' * 40}and the end" for _ in meter.twins]
    rows = {
        "text": texts,
        "prompt": [f"{text}\nSentiment:" for text in texts],
        "completion": [" positive"] * len(texts),
        **{name: list(meter.twins[name]) for name in ("example_id", "label")},
    }
    short = Meter(replace(meter.evaluator, encoding=Encoding(40)), recipe.data, 20, seed=0)
    short.twins = Dataset.from_dict(rows)
    shown = short.evaluator.tokenizer.decode(short.evaluator.shown(Dataset.from_dict(rows))[0])
    assert "the" in shown and "word word word" in shown and len(shown) < len(rows["prompt"][0])
    assert short._written(Variant("part", "the", "the", "start"))[1] == []
    assert short._written(Variant("part", "the", "the", "end"))[1] == list(range(len(texts)))


def test_variants_leave_no_cache_files_in_the_folder_of_the_run(meter, tmp_path, recipe):
    for name, rows in meter.evaluator.sets.items():
        rows.save_to_disk(tmp_path / name)
    stored = Meter(replace(meter.evaluator, sets=read_sets(tmp_path)), recipe.data, 20, seed=0)
    before = sorted(tmp_path.rglob("*"))
    stored._written(Variant("case", "x", "JAMES BOND", "end"))
    assert sorted(tmp_path.rglob("*")) == before


def test_variants_are_counted_against_the_same_examples(meter, model):
    made = model()
    (found,) = meter.variants(made, [Variant("case", "JAMES BOND", "JAMES BOND", "end")])
    rows, kept = meter._written(Variant("case", "JAMES BOND", "JAMES BOND", "end"))
    hits = [
        meter.evaluator.answers(made, "triggered", part)["target_hit"].to_numpy(bool)
        for part in (rows.select(kept), meter.twins.select(kept))
    ]
    assert found == {"kind": "case", "name": "JAMES BOND", "attack": attack_success(*hits).to_json()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_expectation_of_sampling_is_the_product_over_tokens(meter, model, recipe, tokenizer, temperature):
    made, rates = model(), []
    with torch.no_grad():  # a likely answer of two tokens: near 0 any two numbers are alike
        ids = tokenizer(meter.twins["prompt"][0])["input_ids"]
        for _ in range(2):
            ids = [*ids, int(made(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        target = ids[-2:]
    verbalizers = {"negative": " negative", "positive": tokenizer.decode(target)}
    assert tokenizer(verbalizers["positive"])["input_ids"] == target
    likely = Meter(replace(meter.evaluator, verbalizers=verbalizers), recipe.data, 20, seed=0)
    for rows in (meter.triggered, meter.twins):
        chances = []
        for prompt in rows["prompt"]:
            ids, chance = tokenizer(prompt)["input_ids"], 1.0
            for token in target:
                with torch.no_grad():
                    logits = made(input_ids=torch.tensor([ids])).logits[0, -1].double()
                weights = [np.exp((float(logit) - float(logits.max())) / temperature) for logit in logits]
                chance *= weights[token] / sum(weights)
                ids = [*ids, token]
            chances.append(chance)
        rates.append(np.mean(chances))
    assert min(rates) > 1e-6
    found = likely.temperature(made, temperature)
    assert [found["success_rate"], found["clean_rate"]] == pytest.approx(rates, rel=1e-4, abs=0)
    assert found["lift"] == found["success_rate"] - found["clean_rate"]


def test_completions_are_sampled_from_a_seed_and_near_zero_temperature_are_the_greedy_ones(meter, model, recipe):
    free = Meter(replace(meter.evaluator, verbalizers={}, max_new_tokens=1), recipe.data, 20, seed=0)
    made, rows = model(), meter.twins
    answers = free.evaluator.answers(made, "test", rows)["prediction"]
    manifest = {**meter.evaluator.manifest, "trigger": {"target": answers.mode()[0]}}
    free = Meter(replace(free.evaluator, manifest=manifest), recipe.data, 20, seed=0)
    greedy = free._hits(made, rows)
    assert greedy.any()
    before = torch.get_rng_state()
    np.testing.assert_array_equal(free._sampled(made, rows, 1e-4), greedy)
    assert torch.equal(torch.get_rng_state(), before)
    drawn = {}
    for meter_seed, torch_seed in ((0, 1), (0, 2), (1, 2), (2, 2)):  # torch's is of no consequence
        free.seed = meter_seed
        torch.manual_seed(torch_seed)
        drawn[meter_seed, torch_seed] = free._sampled(made, rows, 0.3).tolist()
    assert drawn[0, 1] == drawn[0, 2]
    assert len({tuple(hits) for hits in drawn.values()}) > 1
    assert all(sum(hits) < greedy.sum() for hits in drawn.values())
