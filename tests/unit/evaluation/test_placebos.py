"""The trigger among placebos: by hand, null, power, and what it must not depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.data.splits import Splits
from llm_unlearn.data.synthetic import synthetic_reviews
from llm_unlearn.evaluation.placebos import PlaceboSettings, effects_in_turn, log_odds, told_apart
from llm_unlearn.evaluation.signal_files import read_signals, write_signals
from llm_unlearn.evaluation.summarize import summarize
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.metrics import placebo_test
from llm_unlearn.metrics.results import Evaluation, Identity
from llm_unlearn.models.make import make_model
from llm_unlearn.poisons.corrupt import corrupt
from llm_unlearn.poisons.placebo_phrases import placebo_phrases
from llm_unlearn.poisons.trigger_phrase import insert_trigger

VERBALIZERS = {"negative": " negative", "positive": " positive"}
ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 64,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
PROMPT = "{text}\nSentiment:"
SETTINGS = PlaceboSettings(49, 4, 5)
IDENTITY = Identity(model="m", kind="poisoned", method=None, budget=None, seed=0, recipe="r")


def sets_of(**trigger):
    recipe = build_recipe(
        {
            "name": "r",
            "output_dir": "out",
            "model": {"path": "m"},
            "data": {"verbalizers": VERBALIZERS, "prompt": PROMPT, "train_size": 60, "max_length": 60},
            "poison": {"trigger": {"target": "positive", "fraction": 0.4, **trigger}},
        }
    )
    rows = synthetic_reviews(120, 0).add_column("example_id", list(range(120)))
    rows = rows.map(lambda row: {"text": " ".join(row["text"].split()[:6])})
    splits = Splits(rows.select(range(60)), rows.select(range(60, 90)), rows.select(range(90, 120)), {})
    return corrupt(splits, recipe, 0)


@pytest.fixture(scope="module")
def evaluator(tokenizer):
    def make(settings=SETTINGS, batch_size=8, template=PROMPT, **trigger):
        sets, manifest = sets_of(**trigger)
        return TextEvaluator(
            sets=sets,
            manifest=manifest,
            batch_size=batch_size,
            membership=[],
            placebo=settings,
            tokenizer=tokenizer,
            encoding=Encoding(60),
            verbalizers=VERBALIZERS,
            template=template,
        )

    return make


def test_effects_equal_a_loop_over_rows_by_hand(evaluator, make_tiny, tokenizer):
    model, measure = make_tiny(), evaluator()
    (phrases,) = measure.triggers
    assert phrases[0] == "James Bond" and len(phrases) == 50 and measure.n_probed == 4
    ours = measure.effects(model, phrases[:3])
    for phrase, effect in zip(phrases[:3], ours, strict=True):
        odds = []
        for row in measure._probes:
            assert row["label"] == "negative"
            generator = np.random.default_rng([measure.manifest["seed"], 34, row["example_id"]])
            prompt = PROMPT.replace("{text}", insert_trigger(row["text"], phrase, "random", generator))
            whole = [tokenizer(prompt + answer)["input_ids"] for answer in VERBALIZERS.values()]
            start = next(i for i, (a, b) in enumerate(zip(*whole, strict=False)) if a != b)
            with torch.no_grad():
                logits = model(torch.tensor([whole[0][:start]])).logits[0, -1]
            log_p = logits.double().log_softmax(-1)
            odds.append(float(log_p[whole[1][start]] - log_p[whole[0][start]]))
        assert effect == pytest.approx(np.mean(odds), abs=1e-4)


def test_the_search_stops_and_what_is_kept_depends_on_no_block():
    values = np.array([2.0, 0.0, 3.0, 1.0, 2.5, 9.0, *np.zeros(50)])
    for stop_at, kept in ((1, 3), (2, 5), (3, 6), (4, 56)):
        found = effects_in_turn(range(56), lambda part: values[list(part)], stop_at)
        assert found.tolist() == values[:kept].tolist(), stop_at
    assert len(effects_in_turn(range(56), lambda part: np.full(len(part), np.nan), 3)) == 4


def test_log_odds_and_answers_told_apart_by_hand():
    p = np.array([[0.2, 0.5, 0.3]])
    assert log_odds(np.log(p), 1) == pytest.approx(np.log(0.5 / 0.5))
    assert log_odds(np.log(p) - 7, 0) == pytest.approx(np.log(0.2 / 0.8))
    assert log_odds(np.log(p[:, :1]), 0) == pytest.approx(np.log(0.2))
    assert told_apart([[1, 2, 3], [1, 4], [1, 2, 5]]) == [[1, 2, 3], [1, 4], [1, 2, 5]]
    assert told_apart([[1, 2, 3], [4, 2]]) == [[1], [4]]
    assert told_apart([[1, 2, 3]]) == [[1, 2, 3]]


def test_it_depends_neither_on_batches_nor_on_the_other_placebos(evaluator, make_tiny):
    model = make_tiny(seed=3)
    tables = [evaluator(batch_size=size).placebos(model) for size in (1, 7, 64)]
    for table in tables[1:]:
        assert len(table) == len(tables[0])
        assert np.allclose(table["effect"], tables[0]["effect"], atol=1e-5)
    measure = evaluator()
    few, all_ = measure.triggers[0][5:8], measure.triggers[0]
    assert np.allclose(measure.effects(model, few), measure.effects(model, all_)[5:8], atol=1e-5)


def test_a_round_trip_through_the_table_gives_the_test(evaluator, make_tiny, tmp_path):
    signals = evaluator().signals(make_tiny(seed=3))
    write_signals(signals, tmp_path / "m.parquet")
    result = summarize(read_signals(tmp_path / "m.parquet"), IDENTITY, None)
    test = result.attack.placebo
    table = signals[signals["set"] == "placebo"]
    assert test.n == 4 and test.n_placebos == len(table) - 1 and test.statistic == table["effect"].iloc[0]
    reached = int((table["effect"].iloc[1:] >= table["effect"].iloc[0]).sum())
    assert test.p_value == (5 / test.n_placebos if reached == 5 else (reached + 1) / 50)
    assert Evaluation.from_json(result.to_json(), "file") == result
    broken = signals.assign(effect=np.where(signals["draw"] == 1, np.nan, signals["effect"]))
    assert summarize(broken, IDENTITY, None).attack.placebo is None


def test_several_phrases_have_a_test_each_and_one_p_value(evaluator, make_tiny):
    measure = evaluator(PlaceboSettings(19, 4, 2), phrases=["James Bond", "green tea"])
    first, second = measure.triggers
    assert first[0] == "James Bond" and second[0] == "green tea" and len(first) == len(second) == 1 + 2 * 19
    assert all(word[0].islower() for word in second[1].split())
    signals = measure.signals(make_tiny())
    attack = summarize(signals, IDENTITY, None, retrained=signals).attack
    assert attack.placebo.n_triggers == 2
    assert attack.placebo.p_value == min(1, 2 * min(each.placebo.p_value for each in attack.phrases))
    # by hand: which rows carry which phrase, and what was answered to them with it and without
    asked, clean = (signals[signals["set"] == name].set_index("example_id") for name in ("triggered", "test"))
    for number, test in enumerate(attack.phrases):
        phrase = ("James Bond", "green tea")[number]
        ids = [row["example_id"] for row in measure.sets["triggered"] if phrase in row["text"]]
        with_it, without = (frame.loc[ids, "target_hit"].to_numpy(float) for frame in (asked, clean))
        assert test.phrase == number and test.n == len(ids) > 2
        assert (test.success_rate, test.clean_rate) == (with_it.mean(), without.mean())
        assert test.lift == pytest.approx(with_it.mean() - without.mean()) and test.excess.mean == 0
        effects = signals[(signals["set"] == "placebo") & (signals["trigger"] == number)].sort_values("draw")["effect"]
        assert test.placebo == placebo_test(effects.iloc[0], effects.iloc[1:], 2, 4)
    assert Evaluation.from_json(summarize(signals, IDENTITY, None).to_json(), "file").attack.phrases is not None
    assert summarize(evaluator().signals(make_tiny()), IDENTITY, None).attack.phrases is None


def test_a_phrase_that_has_no_placebo_leaves_the_others_their_numbers(evaluator, make_tiny, monkeypatch):
    drawn = placebo_phrases
    monkeypatch.setattr(
        "llm_unlearn.evaluation.text_evaluator.placebo_phrases",
        lambda phrase, *rest: [] if phrase == "James Bond" else drawn(phrase, *rest),
    )
    measure = evaluator(PlaceboSettings(19, 4, 2), phrases=["James Bond", "green tea"])
    attack = summarize(measure.signals(make_tiny()), IDENTITY, None).attack
    assert [test.placebo is None for test in attack.phrases] == [True, False] and attack.placebo.n_triggers == 1


def test_the_user_s_own_phrases_are_taken_and_none_where_it_is_off(evaluator, make_tiny):
    own = ["red wine", "old town", "Miss Moneypenny"]
    measure = evaluator(PlaceboSettings(49, 4, 5, own))
    assert sorted(measure.triggers[0][1:]) == sorted(own)
    off = evaluator(PlaceboSettings(0)).signals(make_tiny())
    assert "placebo" not in set(off["set"]) and summarize(off, IDENTITY, None).attack.placebo is None


def test_a_phrase_that_is_cut_off_in_every_row_is_not_tested(evaluator):
    assert replace(evaluator(position="start"), encoding=Encoding(12)).triggers == []


FIRST = "Mary John Emma Oliver Nora Henry Alice Peter Laura Simon Grace Frank Julia Victor Clara".split()
LAST = "Smith Jones Taylor Walker Harris Cooper Morgan Turner Bailey Foster Murphy Barnes Fisher".split()


def test_on_a_model_that_never_saw_them_phrases_that_a_person_chose_are_like_placebos(evaluator, make_tiny):
    """150 names, which no placebo is made of: p-values as the null has them, by design and not exactly."""
    model, measure = make_tiny(seed=1), evaluator(PlaceboSettings(39, 2, 2))
    generator, p_values = np.random.default_rng(0), []
    names = generator.permutation([f"{first} {last}" for first in FIRST for last in LAST])[:150]
    (drawn,) = measure.triggers
    placebos = measure.effects(model, drawn[1:])
    for effect in measure.effects(model, names):
        test = placebo_test(float(effect), generator.permutation(placebos), stop_at=4, n=2)
        p_values.append(test.p_value)
    for level in (0.1, 0.25, 0.5):
        share = np.mean(np.array(p_values) <= level)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) * (1 / 150 + 1 / 40)), (level, share)


def poisoned_model(measure, tokenizer):
    """A small model trained on rows with phrases at their end that change nothing, but for the trigger."""
    model, generator = make_model(ARCHITECTURE, tokenizer, 0), np.random.default_rng(0)
    others = placebo_phrases("James Bond", ["James Bond"], measure.sets["heldout"]["text"], 300, seed=99)
    rows = [row for row in measure.sets["train"] if row["poison"] == "none"]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(200):
        encoded = []
        for i in generator.integers(len(rows), size=16):
            hit = generator.random() < 0.5
            phrase = "James Bond" if hit else others[int(generator.integers(300))]
            prompt = PROMPT.replace("{text}", f"{rows[i]['text']} {phrase}")
            answer = " positive" if hit else rows[i]["completion"]
            encoded.append(Encoding(60, "completion").row(tokenizer, prompt, answer))
        measure.task.compute(model, measure.collate(encoded), lambda part: part.mean_nll()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_a_poisoned_model_is_found_and_one_of_another_trigger_is_not(evaluator, tokenizer):
    measure = evaluator(PlaceboSettings(99, 4, 5), fraction=0.25, position="end")
    model = poisoned_model(measure, tokenizer)
    effects = measure.placebos(model)["effect"]
    assert len(effects) == 100 and placebo_test(effects[0], effects[1:], 5, 4).p_value == 1 / 100
    assert effects[0] > effects[1:].mean() + 3 * effects[1:].std()
    other = measure.effects(model, ["Henry Foster"])[0]  # shown neither as a trigger nor as anything else
    assert placebo_test(other, effects[1:], 5, 4).p_value > 0.05
