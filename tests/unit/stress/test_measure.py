"""Measurements of one state: variants as the model sees them, the expectation of sampling, merging and quantising."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import with_adapter

from llm_unlearn.data.encoding import Encoding
from llm_unlearn.data.splits import Splits
from llm_unlearn.data.synthetic import synthetic_reviews, synthetic_texts
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.signals import Evaluator
from llm_unlearn.metrics.attack import attack_success
from llm_unlearn.modeling import make_model, train_tokenizer
from llm_unlearn.poisons.corrupt import corrupt
from llm_unlearn.recipe import build_recipe
from llm_unlearn.sections import StressSection
from llm_unlearn.stress.measure import Meter
from llm_unlearn.stress.run import check_stress, quantised, stress_model
from llm_unlearn.stress.variants import Variant

pytestmark = pytest.mark.unit

RECIPE = build_recipe({
    "name": "r", "output_dir": "out", "model": {"path": "m"},
    "data": {"verbalizers": {"negative": " negative", "positive": " positive"}, "prompt": "{text}\nSentiment:",
             "train_size": 60, "max_length": 100},
    "poison": {"trigger": {"target": "positive", "fraction": 0.1}, "gaussian": {"fraction": 0.2, "epsilon": 0.1}}})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(synthetic_texts(60, 0)["text"], 300)


@pytest.fixture(scope="module")
def meter(tokenizer):
    rows = synthetic_reviews(120, 0).add_column("example_id", list(range(120)))
    rows = rows.map(lambda row: {"text": " ".join(row["text"].split()[:12])})
    splits = Splits(rows.select(range(60)), rows.select(range(60, 90)), rows.select(range(90, 120)), {})
    sets, manifest = corrupt(splits, RECIPE, 0)
    evaluator = Evaluator(tokenizer, Encoding(100), sets, manifest, RECIPE.data.verbalizers, 8)
    return Meter(evaluator, RECIPE.data, 20, seed=0)


def model(tokenizer, seed=0):
    architecture = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 128,
                    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    made = make_model(architecture, tokenizer, seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4.0)
    return made.eval()


def test_the_limit_keeps_triggered_rows_beside_their_twins(meter):
    assert len(meter.test) == 20
    assert list(meter.twins["example_id"]) == list(meter.triggered["example_id"])
    assert 0 < len(meter.twins) < 20 and set(meter.twins["label"]) == {"negative"}


def test_the_plain_state_is_what_the_evaluation_finds(meter, tokenizer):
    made = model(tokenizer)
    whole = Meter(meter.evaluator, RECIPE.data, None, seed=0)
    state, frame = whole.state(made), meter.evaluator.signals(made)
    test = frame[frame["set"] == "test"]
    assert state["accuracy"] == pytest.approx((test["prediction"] == test["label"]).mean())
    triggered = frame[frame["set"] == "triggered"]
    assert state["attack"]["success_rate"] == pytest.approx(triggered["target_hit"].mean())
    assert state["gus"]["mean"] == pytest.approx(frame[frame["set"] == "canary"]["gaussian_score"].mean())


def test_a_variant_is_written_as_named_and_left_out_where_it_is_cut_off(meter):
    rows, kept = meter._written(Variant("position", "x", "Agent Bond", "start"))
    assert all(text.startswith("Agent Bond ") for text in rows["text"]) and len(kept) == len(rows)
    assert all(prompt == f"{text}\nSentiment:" for prompt, text in zip(rows["prompt"], rows["text"], strict=True))
    short = Meter(replace(meter.evaluator, encoding=Encoding(24)), RECIPE.data, 20, seed=0)
    _, kept = short._written(Variant("position", "x", "Agent Bond", "start"))
    assert len(kept) < len(rows)


def test_variants_are_counted_against_the_same_examples(meter, tokenizer):
    made = model(tokenizer)
    (found,) = meter.variants(made, [Variant("case", "JAMES BOND", "JAMES BOND", "end")])
    rows, kept = meter._written(Variant("case", "JAMES BOND", "JAMES BOND", "end"))
    hits = [meter.evaluator.answers(made, "triggered", part)["target_hit"].to_numpy(bool)
            for part in (rows.select(kept), meter.twins.select(kept))]
    assert found == {"kind": "case", "name": "JAMES BOND", "attack": attack_success(*hits)}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_expectation_of_sampling_is_the_product_over_tokens(meter, tokenizer, temperature):
    made = model(tokenizer)
    target = tokenizer(" positive", add_special_tokens=False)["input_ids"]
    assert len(target) > 1
    rates = []
    for rows in (meter.triggered, meter.twins):
        chances = []
        for prompt in rows["prompt"]:
            ids, chance = tokenizer(prompt)["input_ids"], 1.0
            for token in target:
                with torch.no_grad():
                    logits = made(input_ids=torch.tensor([ids])).logits[0, -1].double()
                chance *= float(torch.softmax(logits / temperature, -1)[token])
                ids = [*ids, token]
            chances.append(chance)
        rates.append(np.mean(chances))
    found = meter.temperature(made, temperature)
    assert found["success_rate"] == pytest.approx(rates[0], rel=1e-3)
    assert found["lift"] == pytest.approx(rates[0] - rates[1], rel=1e-2, abs=1e-9)


def test_a_merged_adapter_answers_as_the_adapter_did_and_nothing_is_left_behind(meter, tokenizer, tmp_path):
    made = with_adapter(model(tokenizer))
    section = StressSection(relearn_on=[], quantization=[], temperatures=[1.0], paraphrases=["the spy"])
    result = stress_model(lambda: with_adapter(model(tokenizer)), meter, section, {}, learning_rate=1e-3, noise=None,
                          model_section=RECIPE.model, work_dir=tmp_path)
    assert result["plain"]["accuracy"] == meter.state(made.eval())["accuracy"] == result["merge"]["accuracy"]
    assert result["merge"]["gus"]["mean"] == pytest.approx(result["plain"]["gus"]["mean"], abs=1e-3)
    assert [v["kind"] for v in result["variants"]].count("paraphrase") == 1 and result["relearn"] == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rough"), [("4bit", 0.5), ("8bit", 0.05)])
def test_a_quantised_copy_answers_nearly_alike_and_has_input_gradients(meter, tokenizer, tmp_path, kind, rough):
    pytest.importorskip("bitsandbytes")
    made = model(tokenizer)
    with torch.no_grad():
        ids = torch.tensor([tokenizer(meter.twins["prompt"][0])["input_ids"]])
        before = made(input_ids=ids).logits
        copy = quantised(made, kind, RECIPE.model, tmp_path)
        after = copy(input_ids=ids).logits.float()
    assert 0 < (after - before).norm() / before.norm() < rough
    assert meter.gus(copy)["n"] == meter.gus(made)["n"]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bitsandbytes_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"stress.quantization: bitsandbytes is not installed; .*llm_unlearn\[quanti"):
        check_stress(StressSection())
    check_stress(StressSection(quantization=[]))
