"""scripts/canary_study.py: its statistics are exact, its rows as they are said to be, its table complete."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from paths import ROOT
from scipy.stats import kstest

from llm_unlearn.metrics.power import smallest_effect

pytestmark = pytest.mark.unit

spec = importlib.util.spec_from_file_location("canary_study", ROOT / "scripts" / "canary_study.py")
study = importlib.util.module_from_spec(spec)
sys.modules["canary_study"] = study  # its dataclasses look themselves up
spec.loader.exec_module(study)


def test_ranks_by_token_are_exchangeable_and_see_what_is_lower_at_every_token():
    """Tokens that depend on each other, of other scales: the rank of the combined statistic is uniform all the same."""
    generator, scores = np.random.default_rng(0), []
    for i in range(600):
        losses = generator.gamma(1.0, 1.0, (21, 1)) + generator.gamma(1.0, np.arange(1, 9), (21, 8))
        combined = -study.ranks_by_token(losses)
        scores.append(study.ranked(np.r_[combined[0], combined[0], combined[1:]], i)[0])
    assert kstest(scores, "norm").pvalue > 0.001
    lower = generator.normal(0, 1, (21, 8)) - 3 * (np.arange(21) == 0)[:, None]
    assert study.ranks_by_token(lower).argmax() == 0


def test_each_design_has_rows_of_its_own_and_the_rest_is_clean(tmp_path):
    lines = [json.dumps({"text": f"word {i} and more words", "label": i % 2}) for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = study.read_rows(tmp_path / "rows.jsonl", 280, 3)
    assert len(set(found)) == 280 and {label for _, label in found} == {"negative", "positive"}
    rows = study.plant(found, study.PLANS["designs"])
    counts = {design: sum(row.design == design for row in rows) for design in {row.design for row in rows}}
    assert counts == study.PLANS["designs"].canaries | {None: 20}
    assert [row.ident for row in rows] == list(range(280))


@pytest.fixture
def small(tmp_path, make_tiny, tokenizer):
    """A study of an untrained Llama of two blocks; rows: noise at the embeddings, at block 1 twice an epoch, clean."""

    def make(rank=None):
        make_tiny("llama").save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        designs = [study.Design("per token", 1.0), study.Design("per token", 1.0, layer=1, exposures=2), None]
        rows = [study.Row(f"a good film {i}", " positive", design, i) for i, design in enumerate(designs)]
        return study.Study(str(tmp_path / "model"), rows, rank)

    return make


def test_noise_is_added_to_what_enters_its_block(small, tmp_path):
    """Against the blocks of a model without hooks, called one after the other."""
    from transformers import AutoModelForCausalLM

    made = small()
    made.model.eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([made.encoded[1]["ids"]])
    noise = made.noise(made.rows[1], ids.shape[1], 3, 1)[None]
    with torch.no_grad():
        hidden = plain.model.embed_tokens(ids)
        places = torch.arange(ids.shape[1])[None]
        rotary = plain.model.rotary_emb(hidden, places)
        for i, block in enumerate(plain.model.layers):
            if i == 1:
                rms = [float(hidden[0, t].square().mean().sqrt()) for t in range(1, ids.shape[1])]
                hidden = hidden + noise
            hidden = block(hidden, attention_mask=None, position_ids=places, position_embeddings=rotary)
        logits = plain.lm_head(plain.model.norm(hidden))[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        with_noise, without = (made.token_losses(ids, each)[0].float() for each in ({1: noise}, {}))
        assert torch.allclose(with_noise, expected, atol=0.05) and not torch.allclose(without, expected, atol=0.05)
    assert min(rms) <= made.rms[1] <= max(rms)


def test_the_gradient_score_of_a_block_is_the_slope_along_its_noise(small):
    made = small()
    made.model.double().eval()
    row, encoded = made.rows[1], made.encoded[1]
    ids, length = torch.tensor([encoded["ids"]]), len(encoded["ids"])
    made.token_losses = exact_losses(made)
    own = made.noise(row, length, study.SEED, row.ident)[None].double()
    score = made.gradient_scores(row, encoded, 0)["gradient"][0]
    noise = torch.zeros_like(own).requires_grad_()
    (gradient,) = torch.autograd.grad(made.token_losses(ids, {1: noise}).sum(), noise)
    step = 1e-3  # RMSNorm computes in float32
    with torch.no_grad():
        up, down = (float(made.token_losses(ids, {1: sign * step * own}).sum()) for sign in (1, -1))
    assert score == pytest.approx(-(up - down) / 2 / step / float(gradient.norm()) / made.rms[1], rel=0.01)


def exact_losses(made):
    """token_losses without autocast, in float64."""

    def losses(ids, noise):
        made.added = {layer: noise.get(layer, torch.zeros((), dtype=torch.float64)).double() for layer in made.rms}
        logits = made.model(inputs_embeds=made.embed(ids) + made.added[0]).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")[None]

    return losses


def test_a_row_is_trained_on_as_often_as_its_exposures_say(small):
    made, seen = small(rank=2), []
    weight = next(p for p in made.model.parameters() if p.requires_grad)
    made._loss = lambda chosen: seen.extend(chosen) or weight.sum()
    for epoch in made.train(1e-3, 2, batch=3):
        assert sorted(seen) == sorted([0, 1, 1, 2] * epoch)


KEPT = (("canaries-smollm2", "designs"), ("canaries-smollm2-share", "share"), ("canaries-smollm2-layers", "layers"))


@pytest.mark.parametrize(("name", "plan"), KEPT)
def test_the_results_that_are_kept_hold_every_design_with_an_exact_null_on_the_base(name, plan):
    """The page's tables are made of them."""
    results = json.loads((ROOT / "recipes" / "tuning" / f"{name}.json").read_text())
    base = results["points"]["base"]["designs"]
    assert set(base) == {design.name for design in study.PLANS[plan].canaries} and results["settings"]["plan"] == plan
    p_values = [test["p"] for statistics in base.values() for name, test in statistics.items() if name != "draws"]
    assert min(p_values) > 0.01 / len(p_values)
    assert study.table(results) in (ROOT / "docs" / "canaries.md").read_text()


def test_how_many_canaries_are_found_one_by_one_is_kept_of_every_training():
    points = json.loads((ROOT / "recipes" / "tuning" / "canaries-smollm2.json").read_text())["points"]
    assert points.keys() == {"base", *(f"{run}, {n} epoch{'s' * (n > 1)}" for run in study.RUNS for n in study.EPOCHS)}
    closely = [design.name for design in study.PLANS["designs"].closely]
    assert {entry["designs"][name]["draws"] for point, entry in points.items() for name in closely} == {19, 99}
    assert {points["base"]["designs"][name]["draws"] for name in closely} == {19}
    found = {
        run: [
            f"{100 * points[f'{run}, 2 epochs']['designs'][name][test]['tpr']['0.01']:.0f}"
            for name in closely
            for test in ("loss rank", "row rank")
            if test in points["base"]["designs"][name]
        ]
        for run in study.RUNS
    }
    text = " ".join((ROOT / "docs" / "canaries.md").read_text().split())
    for run, words in (("full", "all weights show {} to {}%"), ("lora-64", "rank 64 {} to {}%")):
        assert words.format(*(sorted(found[run], key=int)[i] for i in (0, -1))) in text, found[run]


def test_what_many_draws_find_is_of_the_results_that_are_kept():
    points = [
        json.loads((ROOT / "recipes" / "tuning" / f"canaries-smollm2{name}.json").read_text())["points"]
        for name in ("-draws", "")
    ]
    many, few = (each["lora-16, 4 epochs"]["designs"]["noise per token, 1 rms"] for each in points)
    assert (many["draws"], few["draws"]) == (999, 99) and many["gradient"]["z"] == few["gradient"]["z"]  # of one model
    many, few = many["loss rank"], few["loss rank"]
    words = [f"mean loss rank of {many['mean']:.2f} in the place of {few['mean']:.2f}"]
    for n, verb in ((50, "find a residue of"), (100, "of")):
        shares = [f"{smallest_effect(n, 1.0) / test['mean']:.0%}" for test in (many, few)]
        words.append(f"{n} {'canaries ' if n == 50 else ''}{verb} {shares[0]} ({shares[1]})")
    rates = [f"{test['tpr'][fpr]:.0%}" for test, fpr in ((many, "0.001"), (many, "0.01"), (few, "0.01"))]
    words.append(f"positives {rates[0]} of the canaries are found, at 1% {rates[1]} ({rates[2]})")
    text = " ".join((ROOT / "docs" / "canaries.md").read_text().split())
    for said in words:
        assert said in text, said


def test_its_help_can_be_read(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["canary_study.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        study.main()
    assert ended.value.code == 0 and "TPR at 1 %" in capsys.readouterr().out


def test_a_study_of_other_settings_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    out.write_text(json.dumps({"settings": {"plan": "share"}, "points": {}}))
    words = ["canary_study.py", "--model", "m", "--rows", "r", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(study, "read_rows", lambda path, count, words: [("a b", "positive")] * count)
    with pytest.raises(SystemExit, match="other settings"):
        study.main()
    assert json.loads(out.read_text())["points"] == {}


def test_a_design_that_a_plan_does_not_rank_closely_is_refused(monkeypatch):
    words = ["canary_study.py", "--model", "m", "--rows", "r", "--out", "o", "--closely", "noise per token, 2 rms"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="--closely: noise per token, 2 rms is not among 6 words, answer, "):
        study.main()
