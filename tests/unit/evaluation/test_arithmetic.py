"""The precision that a recipe asks for is at work while a model is evaluated, and nowhere else."""

import numpy as np
import pytest
import torch
from evaluators import WITHOUT_GRADIENTS, evaluator

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.evaluation.arithmetic import Arithmetic

pytestmark = pytest.mark.unit

FIGURES = ["nll", "kl", "gaussian_score", "gaussian_control", "effect", "mia_min_k_plus", "mia_gradient_norm"]
ATTACKS = [name for name in (*WITHOUT_GRADIENTS, "gradient_norm") if name != "reference"]


def cuda_products() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.fixture
def tf32_before():
    """What `TrainingArguments(tf32=True)` of a method leaves behind."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    yield cuda_products()
    matmul.fp32_precision = before


def signals(make_tiny, tokenizer, arithmetic=None, **options):
    model, oracle = make_tiny("llama", seed=1, **options), make_tiny("llama", seed=2)
    measure = evaluator(tokenizer, ATTACKS)
    measure.arithmetic = arithmetic or measure.arithmetic
    return measure.signals(model, oracle)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_bf16_changes_every_figure_a_little(make_tiny, tokenizer, lora):
    exact = signals(make_tiny, tokenizer, lora=lora)
    rounded = signals(make_tiny, tokenizer, Arithmetic(bf16=True), lora=lora)
    for name in FIGURES:
        ours, theirs = (frame[name].dropna().to_numpy() for frame in (rounded, exact))
        assert not np.array_equal(ours, theirs), name
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.15, err_msg=name)
        assert rounded[name].dtype == np.float64


def test_figures_are_sums_in_float32_of_bf16_logits(make_tiny, tokenizer):
    """Of a model beside itself, the divergence is 0 to the last bit; sums of losses keep float32's digits."""
    measure = evaluator(tokenizer, [])
    measure.arithmetic = Arithmetic(bf16=True)
    model = make_tiny("llama", seed=1)
    test = measure.signals(model, model).query("set == 'test'")
    assert (test["kl"] == 0).all()
    sums = torch.tensor(test["nll_sum"].to_numpy())
    assert not torch.equal(sums, sums.bfloat16().double())


def test_float32_is_exact_whatever_was_set_before_and_tf32_only_where_asked(make_tiny, tokenizer, tf32_before):
    seen, measure, model = [], evaluator(tokenizer, []), make_tiny("gpt2")
    look = model.register_forward_hook(lambda *_: seen.append((*cuda_products(), torch.is_autocast_enabled("cpu"))))
    for arithmetic, expected in (
        (Arithmetic(), ("ieee", "ieee", False)),
        (Arithmetic(tf32=True), ("tf32", "tf32", False)),
        (Arithmetic(bf16=True), ("ieee", "ieee", True)),
    ):
        measure.arithmetic = arithmetic
        for run in (lambda: measure.signals(model), lambda: measure.quick_figures(model)):
            seen.clear()
            run()
            assert set(seen) == {expected}
            assert cuda_products() == tf32_before and not torch.is_autocast_enabled("cpu")
    look.remove()
    with pytest.raises(ZeroDivisionError), Arithmetic(tf32=True).at_work(torch.device("cpu")):
        _ = 1 / 0
    assert cuda_products() == tf32_before


@pytest.mark.parametrize(
    ("arithmetic", "precision"),
    [
        (Arithmetic(), "float32"),
        (Arithmetic(tf32=True), "tf32"),
        (Arithmetic(bf16=True, tf32=True), "bfloat16"),
        (Arithmetic(weights="bfloat16"), "bfloat16"),
        (Arithmetic(weights="float16"), "float16"),
    ],
)
def test_the_lowest_precision_has_the_name(arithmetic, precision):
    assert arithmetic.precision == precision


@pytest.mark.parametrize("field", ["bf16", "tf32"])
def test_a_changed_precision_makes_evaluation_and_stress_again_and_is_recorded(tmp_path, field):
    from llm_unlearn.runs.evaluation_stages import evaluate_stages
    from llm_unlearn.runs.language_run import LanguageRun
    from llm_unlearn.runs.stages import Stage
    from llm_unlearn.runs.stress_stages import stress_stages

    tree = {
        "name": "r",
        "output_dir": str(tmp_path),
        "model": {"path": "none"},
        "data": {"verbalizers": {"bad": " bad", "good": " good"}},
        "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
        "stress": {},
    }
    before = {name: Stage(name, [], [], lambda _: None) for name in ("poison", "poisoned", "retrained", "base")}
    keys, precisions = [], []
    for evaluate in ({}, {field: False}, {field: True}):
        run = LanguageRun(build_recipe(tree | {"evaluate": evaluate}), 0, tmp_path, quiet=True)
        stages = [*evaluate_stages(run, before), *stress_stages(run, before)]
        keys.append([stage.key for stage in stages])
        precisions.append({stage.about["precision"] for stage in stages})
    assert keys[0] == keys[1] and not set(keys[1]) & set(keys[2])
    assert precisions == [{"float32"}, {"float32"}, {{"bf16": "bfloat16", "tf32": "tf32"}[field]}]
