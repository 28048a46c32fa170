"""Everything of a `stress` section on one model: what starts fresh, merging, quantising, and what is refused."""

import json

import pytest
import torch
from support import with_adapter

from llm_unlearn.audit.stress.stress_model import check_stress, quantised, stress_model
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.config.sections import StressSection
from llm_unlearn.data.encoding import encode_rows
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit


def test_a_merged_adapter_answers_as_the_adapter_did_and_nothing_is_left_behind(meter, tmp_path, model, recipe):
    made = with_adapter(model())
    section = StressSection(relearn_on=[], quantization=[], temperatures=[1.0], paraphrases=["the spy"])
    result = stress_model(
        lambda: with_adapter(model()),
        meter,
        section,
        {},
        learning_rate=1e-3,
        noise=None,
        model_section=recipe.model,
        work_dir=tmp_path,
    )
    assert result["plain"]["accuracy"] == meter.state(made.eval())["accuracy"] == result["merge"]["accuracy"]
    assert result["merge"]["gus"]["mean"] == pytest.approx(result["plain"]["gus"]["mean"], abs=1e-3)
    assert [v["kind"] for v in result["variants"]].count("paraphrase") == 1 and result["relearn"] == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "rough"), [("4bit", 0.5), ("8bit", 0.05)])
def test_a_quantised_copy_answers_nearly_alike_and_has_input_gradients(
    meter, model, recipe, tokenizer, tmp_path, kind, rough
):
    pytest.importorskip("bitsandbytes")
    made = model()
    with torch.no_grad():
        ids = torch.tensor([tokenizer(meter.twins["prompt"][0])["input_ids"]])
        before = made(input_ids=ids).logits
        copy = quantised(made, kind, recipe.model, tmp_path)
        after = copy(input_ids=ids).logits.float()
    assert 0 < (after - before).norm() / before.norm() < rough
    assert meter.canaries(copy)["gus"]["n"] == meter.canaries(made)["gus"]["n"]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bitsandbytes_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"stress.quantization: bitsandbytes .*llm_unlearn\[quanti"):
        check_stress(StressSection())
    check_stress(StressSection(quantization=[]))


def test_a_blank_paraphrase_is_refused():
    with pytest.raises(InputError, match="stress.paraphrases: one is blank"):
        check_stress(StressSection(quantization=[], paraphrases=["the spy", " "]))


def test_relearning_without_rows_is_refused_before_any_work(meter, recipe, tmp_path):
    empty = meter.evaluator.sets["train"].select([])
    with pytest.raises(InputError, match="stress.relearn_on: .*'clean'; .*take it out"):
        stress_model(
            lambda: pytest.fail("loaded"),
            meter,
            StressSection(),
            {"clean": empty},
            learning_rate=1e-3,
            noise=None,
            model_section=recipe.model,
            work_dir=tmp_path,
        )


def test_every_relearning_starts_from_a_model_of_its_own(meter, model, recipe, tokenizer, tmp_path):
    train = encode_rows(meter.evaluator.sets["train"], tokenizer, meter.evaluator.encoding)
    gaussian = meter.evaluator.manifest["gaussian"]
    shown = [i for i in gaussian["example_ids"] if i not in gaussian["hidden_ids"]]
    chosen = {*shown[:3], *gaussian["hidden_ids"][:2], *meter.evaluator.manifest["tokens"]["hidden_ids"][:1]}
    rows = {
        "clean": train.filter(lambda row: row["poison"] == "none"),
        "poisoned": train.filter(lambda row: row["example_id"] in chosen),
    }
    loaded = []

    def load():
        loaded.append(with_adapter(model()))
        return loaded[-1]

    section = StressSection(relearn_steps=[2, 1], quantization=[], temperatures=[2.0])
    result = stress_model(
        load,
        meter,
        section,
        rows,
        learning_rate=1e-2,
        noise=meter.evaluator.manifest["gaussian"],
        model_section=recipe.model,
        work_dir=tmp_path,
    )
    assert len(loaded) == 3
    plain, n = result["plain"], result["plain"]["gus"]["n"]
    for kind, curve in result["relearn"].items():
        assert [point["step"] for point in curve] == [0, 1, 2]
        assert all(curve[0][key] == plain[key] for key in ("attack", "accuracy"))
        # hidden canaries that are shown again are not scored
        again = set(rows[kind]["example_id"]) & set(meter.evaluator.manifest["gaussian"]["hidden_ids"])
        assert len(again) == (2 if kind == "poisoned" else 0)
        assert {point[name]["n"] for point in curve for name in ("gus", "loss_rank")} == {n - len(again)}
        assert {point["canary_rank"]["n"] for point in curve} == {6 - (kind == "poisoned")}
    assert result["relearn"]["clean"][0]["gus"] == plain["gus"]
    ends = [curve[-1]["gus"]["mean"] for curve in result["relearn"].values()]
    assert len({result["plain"]["gus"]["mean"], *ends}) == 3
    base = model().state_dict()  # the adapter alone trained
    for trained in loaded[1:]:
        kept = trained.get_base_model().transformer.h[0].attn.c_attn.base_layer.weight
        torch.testing.assert_close(kept, base["transformer.h.0.attn.c_attn.weight"], rtol=0, atol=0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_on_a_quantised_base_nothing_is_merged_or_quantised_again(meter, model, tmp_path):
    section = StressSection(relearn_on=[], temperatures=[])
    result = stress_model(
        lambda: with_adapter(model()),
        meter,
        section,
        {},
        learning_rate=1e-3,
        noise=None,
        model_section=ModelSection(path="m", quantization="4bit"),
        work_dir=tmp_path,
    )
    assert result["merge"] is None and result["quantization"] == {} and result["temperature"] == []


def test_an_adapter_is_merged_before_the_whole_is_quantised(meter, model, recipe, tmp_path):
    pytest.importorskip("bitsandbytes")
    section = StressSection(relearn_on=[], temperatures=[], quantization=["8bit"])
    result = stress_model(
        lambda: with_adapter(model()),
        meter,
        section,
        {},
        learning_rate=1e-3,
        noise=None,
        model_section=recipe.model,
        work_dir=tmp_path,
    )
    gus = [found["gus"]["mean"] for found in (result["plain"], result["merge"], result["quantization"]["8bit"])]
    assert gus[1] == pytest.approx(gus[0], abs=1e-3) and 0 < abs(gus[2] - gus[0]) < 0.2
    assert abs(meter.canaries(model())["gus"]["mean"] - gus[0]) > 0.2  # what the base alone shows
    assert list(tmp_path.iterdir()) == []
