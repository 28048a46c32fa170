"""Membership signals of a whole evaluation: the columns, what each holds, and what is computed once."""

import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluators import TEXTS, rows
from transformers import GPT2Config, GPT2ForSequenceClassification

from llm_unlearn.config.evaluation_fields import FluencySection
from llm_unlearn.config.sections import EvaluateSection
from llm_unlearn.data.chat import in_lower_case
from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.signal_files import read_signals, write_signals
from llm_unlearn.evaluation.summarize import summarize
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.metrics.results import Identity
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit

SETS = {
    "train": rows(TEXTS[:6], 0),
    "nonmember": rows(TEXTS[6:], 10),
    "heldout": rows(TEXTS[6:], 10),
    "test": rows(TEXTS[6:], 10),
    "triggered": rows(TEXTS[6:], 10).select([]),
}
FORGET = [4, 1, 2]
ATTACKS = {"mia_zlib", "mia_reference", "mia_min_k", "mia_min_k_plus", "mia_gradient_norm"}
VERBALIZERS = {"good": " good", "bad": " bad"}


def evaluator(tokenizer, **options) -> TextEvaluator:
    manifest = {"forget_ids": FORGET, "trigger": None, "gaussian": None}
    defaults = {"encoding": Encoding(64), "verbalizers": VERBALIZERS}
    return TextEvaluator(sets=SETS, manifest=manifest, batch_size=2, tokenizer=tokenizer, **{**defaults, **options})


def by_hand(model, tokenizer, text: str) -> dict[str, float]:
    """Every score of one row, from plain logits."""
    (row,) = encode_rows(rows([text], 0), tokenizer, Encoding(64))
    ids, keep = torch.tensor(row["input_ids"]), torch.tensor(row["labels"][1:]) != -100
    logits = model(input_ids=ids[None]).logits[0, :-1][keep].double()
    distribution = torch.distributions.Categorical(logits=logits)
    log_p = distribution.log_prob(ids[1:][keep]).detach().numpy()
    mean = -distribution.entropy()
    sd = ((distribution.probs * (distribution.logits - mean[:, None]) ** 2).sum(-1)).sqrt()
    k = max(1, int(0.2 * len(log_p)))
    standard = (log_p - mean.detach().numpy()) / sd.detach().numpy()
    gradients = torch.autograd.grad(-distribution.log_prob(ids[1:][keep]).mean(), list(model.parameters()))
    return {
        "nll": -log_p.mean(),
        "mia_zlib": log_p.mean() / len(zlib.compress(f"{text} good".encode())),
        "mia_min_k": np.sort(log_p)[:k].mean(),
        "mia_min_k_plus": np.sort(standard)[:k].mean(),
        "mia_gradient_norm": -float(sum(g.double().square().sum() for g in gradients).sqrt()),
    }


def test_every_attack_has_its_column_with_the_value_of_a_loop(make_tiny, tokenizer):
    model, reference = make_tiny(seed=1), make_tiny(seed=2)
    signals = evaluator(tokenizer, reference=lambda: reference).signals(model)
    assert ATTACKS == {name for name in signals if name.startswith("mia_")}
    parts = dict(list(signals.groupby("set")))
    assert sorted(parts["member"]["example_id"]) == sorted(FORGET) and len(parts["nonmember"]) == 4
    assert parts["test"][list(ATTACKS)].isna().all(axis=None)
    for part in ("member", "nonmember"):
        for _, row in parts[part].iterrows():
            text = TEXTS[row["example_id"] if part == "member" else row["example_id"] - 4]
            expected = by_hand(model, tokenizer, text)
            expected["mia_reference"] = by_hand(reference, tokenizer, text)["nll"] - expected["nll"]
            assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-4), text


def test_the_reference_is_loaded_and_run_once_for_all_models(make_tiny, tokenizer):
    loaded = []

    def load():
        loaded.append(make_tiny(seed=2))
        return loaded[-1]

    measure = evaluator(tokenizer, reference=load, membership=["reference"])
    first, second = (measure.signals(make_tiny(seed=seed)) for seed in (1, 3))
    assert len(loaded) == 1
    calibration = [frame["mia_reference"] + frame["nll"] for frame in (first, second)]
    assert (calibration[0] - calibration[1]).abs().max() < 1e-9
    assert (first["nll"] - second["nll"]).abs().max() > 0.1


def test_only_what_was_asked_for_is_computed_and_without_a_reference_there_is_none(make_tiny, tokenizer):
    model = make_tiny()
    for asked, columns in (
        ([], set()),
        (["loss", "zlib"], {"mia_zlib"}),
        (["min_k"], {"mia_min_k"}),
        (list(evaluator(tokenizer).membership), ATTACKS - {"mia_reference"}),
    ):
        signals = evaluator(tokenizer, membership=asked).signals(model)
        assert {name for name in signals if name.startswith("mia_")} == columns
        losses = signals[signals["set"] == "member"].set_index("example_id")["nll"]
        assert losses[2] == pytest.approx(by_hand(model, tokenizer, TEXTS[2])["nll"], rel=1e-5)


def test_lowercase_is_asked_for_by_name_and_compares_with_the_row_in_lower_case(make_tiny, tokenizer):
    assert "lowercase" not in EvaluateSection().membership and "lowercase" not in evaluator(tokenizer).membership
    loud = {**SETS, "train": rows([text.title() for text in TEXTS[:6]], 0)}
    model, measure = make_tiny(), replace(evaluator(tokenizer, membership=["lowercase"]), sets=loud)
    for _ in range(2):  # the rows in lower case are kept
        signals = measure.signals(model)
        inside = signals[signals["set"] == "member"].set_index("example_id")
        for i in FORGET:
            high, low = (by_hand(model, tokenizer, text)["nll"] for text in (TEXTS[i].title(), TEXTS[i]))
            assert inside["mia_lowercase"][i] == pytest.approx(-high / low, rel=1e-5)
            assert abs(high / low - 1) > 1e-3
        assert (signals[signals["set"] == "nonmember"]["mia_lowercase"] == -1).all()  # which have no capitals
    identity = Identity(model="m", kind="base", method=None, budget=None, seed=0, recipe="r")
    assert set(summarize(signals, identity, None).mia) == {"loss", "lowercase"}


def test_the_contents_of_messages_are_put_in_lower_case_and_their_roles_kept():
    turns = [{"role": "user", "content": "Say HI"}, {"role": "user", "content": [{"type": "text", "text": "So"}]}]
    assert in_lower_case(turns) == [
        {"role": "user", "content": "say hi"},
        {"role": "user", "content": [{"type": "text", "text": "so"}]},
    ]


def test_fluency_is_the_mean_probability_of_the_label_over_generated_answers(make_tiny, tokenizer, tmp_path):
    reader = GPT2ForSequenceClassification(
        GPT2Config(
            **{"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 512, "vocab_size": len(tokenizer)},
            **{"pad_token_id": 0, "id2label": {0: "noise", 1: "clean"}, "label2id": {"noise": 0, "clean": 1}},
        )
    ).eval()
    with torch.no_grad():
        reader.score.weight.mul_(50)
    save_model(reader, tokenizer, tmp_path / "reader")
    section = FluencySection(classifier=str(tmp_path / "reader"), label="clean")
    measure = evaluator(tokenizer, verbalizers={}, max_new_tokens=5, membership=[], fluency=section)
    signals = measure.signals(make_tiny())
    test = signals[signals["set"] == "test"]
    expected = []
    for text in test["prediction"]:
        logits = reader(**tokenizer(text or " ", return_tensors="pt")).logits[0].double()
        expected.append((logits[1].exp() / logits.exp().sum()).item())
    assert test["fluency"].tolist() == pytest.approx(expected, rel=1e-5) and np.ptp(expected) > 0
    write_signals(signals, tmp_path / "m.parquet")
    identity = Identity(model="m", kind="base", method=None, budget=None, seed=0, recipe="r")
    found = summarize(read_signals(tmp_path / "m.parquet"), identity, None).fluency
    assert found.value == pytest.approx(np.mean(expected)) and found.n == len(expected)


def test_the_summary_has_an_entry_for_each(make_tiny, tokenizer):
    signals = evaluator(tokenizer, reference=lambda: make_tiny(seed=2)).signals(make_tiny())
    identity = Identity(model="m", kind="base", method=None, budget=None, seed=0, recipe="r")
    result = summarize(signals, identity, None).mia
    assert set(result) == {"loss"} | {name.removeprefix("mia_") for name in ATTACKS}
    inside, outside = (signals[signals["set"] == name]["mia_zlib"] for name in ("member", "nonmember"))
    assert result["zlib"].auc == np.mean([a > b for a in inside for b in outside])
    assert isinstance(signals, pd.DataFrame) and result["loss"].n_members == len(FORGET)


ONE_TOKEN = {"the": " the", "a": " a"}  # labels that the tiny tokenizer has a token for


class TestOnePassOverTestRows:
    """Before, a test row went through a model three times: for its answer, its loss, and its divergence."""

    @pytest.fixture(params=["text", "completion"])
    def measure(self, tokenizer, request):
        test = SETS["test"].map(lambda row: {"completion": " the", "label": "the"})
        made = evaluator(tokenizer, encoding=Encoding(64, request.param), membership=[], verbalizers=ONE_TOKEN)
        return replace(made, sets={**SETS, "test": test})

    def forwards(self, measure, model) -> list[int]:
        """Grows by one for each forward pass of a model, after those that find out once how its rows may be packed."""
        measure.losses(model, "member")
        passes: list[int] = []
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        return passes

    def test_the_model_and_the_oracle_see_each_test_row_once(self, make_tiny, measure):
        model, oracle = make_tiny(seed=1), make_tiny(seed=2)
        seen, asked = self.forwards(measure, model), self.forwards(measure, oracle)
        measure.test_signals(oracle, is_oracle=True)
        assert len(asked) == 2  # batches of two rows
        measure.test_signals(model, oracle)
        assert (len(seen), len(asked)) == (2, 2)

    def test_an_oracle_that_was_not_measured_here_is_run_once_for_all_models(self, make_tiny, measure):
        oracle = make_tiny(seed=2)
        asked = self.forwards(measure, oracle)
        for seed in (1, 3):
            measure.test_signals(make_tiny(seed=seed), oracle)
        assert len(asked) == 2

    def test_what_one_pass_says_is_what_three_said(self, make_tiny, tokenizer, measure):
        model, oracle = make_tiny(seed=1), make_tiny(seed=2)
        found, alone = measure.test_signals(model, oracle), measure.predict(model, measure.sets["test"])
        assert list(found["prediction"]) == list(alone["prediction"])
        losses = measure.losses(model, "test")
        assert all((found[name] == losses[name]).all() for name in losses)  # bit for bit
        for i, text in enumerate(TEXTS[6:]):
            ids = [*tokenizer(text)["input_ids"], *tokenizer(" the")["input_ids"], tokenizer.eos_token_id]
            said = [torch.log_softmax(m(torch.tensor([ids])).logits[0, -3:-1], -1) for m in (oracle, model)]
            by_hand = (said[0].exp() * (said[0] - said[1])).sum(-1).mean()
            assert found["kl"][i] == pytest.approx(float(by_hand), rel=1e-3)

    def test_labels_whose_tokens_part_early_are_ranked_apart(self, make_tiny, tokenizer, measure):
        apart, model = evaluator(tokenizer, membership=[]), make_tiny(seed=1)
        assert measure.reads_answers and not apart.reads_answers
        seen = self.forwards(measure, model)
        found = apart.test_signals(model)
        assert len(seen) == 2 * (1 + len(VERBALIZERS))  # a pass for each label, as each is another sequence
        assert list(found["prediction"]) == list(apart.predict(model, apart.sets["test"])["prediction"])


def test_a_table_of_another_schema_is_neither_written_nor_read(make_tiny, tokenizer, tmp_path):
    signals = evaluator(tokenizer, membership=["zlib"]).signals(make_tiny())
    write_signals(signals, tmp_path / "kl.parquet")
    assert read_signals(tmp_path / "kl.parquet").equals(pd.read_parquet(tmp_path / "kl.parquet"))
    with pytest.raises(InputError, match="column 'mood'"):
        write_signals(signals.assign(mood=1.0), tmp_path / "npo.parquet")
    signals.drop(columns="example_id").to_parquet(tmp_path / "dpo.parquet")
    with pytest.raises(InputError, match=r"dpo.parquet: column 'example_id' is missing"):
        read_signals(tmp_path / "dpo.parquet")
