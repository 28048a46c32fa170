"""The loss rank: its exact null, its power, ties, and what it must not depend on."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.loss_ranks import loss_rank_scores, rank_score
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise
from llm_unlearn.tasks.noise import unit_noise

EPSILON, SEED = 0.1, 11  # of the noise, see conftest.py
NOISE = {"epsilon": EPSILON, "seed": SEED}


def scores(model, canaries, noise=None, draws=99, pad_to=0, **options):
    clean = [{k: row[k] for k in ("input_ids", "labels", "example_id")} for row in canaries]
    return loss_rank_scores(model, clean, CausalLMCollator(0, pad_to=pad_to), noise or NOISE, draws, **options)


class TestRankScore:
    def test_it_is_the_share_of_losses_above_by_hand(self):
        others = np.array([[1.0, 2.0, 3.0]])
        for value, above in ((0.5, 3), (1.5, 2), (9.0, 0)):
            u = (above + 0.25) / 4
            assert rank_score(np.array([value]), others, np.array([0.25])) == pytest.approx(stats.norm.ppf(u))

    def test_ties_get_one_of_their_ranks(self):
        others = np.array([[1.0, 1.0, 2.0]])
        for breaker in (0.1, 0.5, 0.9):
            u = (1 + breaker * 3) / 4
            assert rank_score(np.array([1.0]), others, np.array([breaker])) == pytest.approx(stats.norm.ppf(u))

    @pytest.mark.parametrize("k", [1, 9, 99])
    @pytest.mark.parametrize("levels", [2, 5, None])
    def test_of_exchangeable_values_it_is_standard_normal_with_ties_or_without(self, k, levels):
        generator = np.random.default_rng(k)
        values = generator.random((4000, k + 1)) if levels is None else generator.integers(levels, size=(4000, k + 1))
        result = rank_score(values[:, 0].astype(float), values[:, 1:].astype(float), generator.random(4000))
        assert stats.kstest(result, "norm").pvalue > 0.01

    def test_what_is_not_finite_has_no_score(self):
        others = np.array([[1.0, 2.0], [1.0, np.inf], [1.0, 2.0]])
        result = rank_score(np.array([0.0, 0.0, np.nan]), others, np.full(3, 0.5))
        assert np.isfinite(result).tolist() == [True, False, False]

    def test_no_breaker_gives_an_infinite_score(self):
        for breaker in (0.0, np.nextafter(1, 0)):
            assert np.isfinite(rank_score(np.array([9.0, 0.0]), np.ones((2, 3)), np.full(2, breaker))).all()


def kinds(model) -> dict:
    """The trained model as it is, under LoRA (trained on with no noise), in bf16, and with another's weights tied."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False))
    untied = copy.deepcopy(model)
    untied.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 1.5)
    return {"full": model, "LoRA": adapted, "bf16": copy.deepcopy(model).bfloat16(), "untied": untied}


def null_p_values(model, canaries, n: int, draws: int) -> list:
    noises = ({"epsilon": EPSILON, "seed": 7000 + i} for i in range(n))
    return [gaussian_test(scores(model, canaries, noise, draws)[:, 0]) for noise in noises]


def test_p_values_are_uniform_over_noises_that_a_trained_model_never_saw(trained):
    model, canaries = trained
    tests = null_p_values(model, canaries[:10], 60, 9)
    for name in ("p_value", "chi2_p_value"):
        assert stats.kstest([getattr(test, name) for test in tests], "uniform").pvalue > 0.01, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "LoRA", "bf16", "untied"])
def test_p_values_are_uniform_over_200_noises(trained, kind):
    model, canaries = trained
    tests = null_p_values(kinds(model)[kind], canaries[:20], 200, 19)
    for name in ("p_value", "chi2_p_value"):
        assert stats.kstest([getattr(test, name) for test in tests], "uniform").pvalue > 0.01, name


def test_the_trained_noise_is_found_and_its_sign_is_positive_and_the_control_is_not(trained):
    model, canaries = trained
    own, control = (gaussian_test(column) for column in scores(model, canaries).T)
    assert own.mean > 1 and own.p_value < 1e-6 and own.tpr_at_fpr["0.01"] > 0.1
    assert control.p_value > 1e-3 and control.chi2_p_value > 1e-3


def test_a_model_that_never_saw_the_noise_passes(trained, fresh_model):
    assert gaussian_test(scores(fresh_model, trained[1])[:, 0]).p_value > 1e-3


def test_it_equals_a_loop_over_examples(trained):
    model, canaries = trained
    model.eval()

    def loss(row: dict, z: np.ndarray) -> float:
        x = model.get_input_embeddings()(torch.tensor([row["input_ids"]])).detach() + EPSILON * torch.from_numpy(z)
        with torch.no_grad():
            return float(model(inputs_embeds=x, labels=torch.tensor([row["labels"]])).loss)

    ours = scores(model, canaries[:4], draws=15)[:, 0]
    for row, score in zip(canaries[:4], ours, strict=True):
        shape = (len(row["input_ids"]), model.config.n_embd)
        seed, mixer = SEED + 1_000_003, 0x9E3779B97F4A7C15
        fresh = [unit_noise(seed, ((row["example_id"] + 1) * mixer + k) % 2**63, *shape) for k in range(1, 16)]
        own = loss(row, unit_noise(SEED, row["example_id"], *shape))
        above = sum(loss(row, z) > own for z in fresh)
        breaker = np.random.default_rng([SEED, row["example_id"], 21]).random(2)[0]
        assert score == pytest.approx(stats.norm.ppf((above + breaker) / 16), abs=1e-6)


def test_it_depends_neither_on_batches_nor_on_padding_nor_on_the_other_rows(trained):
    model, canaries = trained
    ours = scores(model, canaries[:8], draws=19)
    for options in ({"batch_size": 3}, {"batch_size": 500}, {"pad_to": 32}):
        assert np.allclose(scores(model, canaries[:8], draws=19, **options), ours)
    assert np.allclose(scores(model, canaries[5:8], draws=19), ours[5:8])
    ids = {row["example_id"] for row in canaries}
    far = [{**row, "example_id": 2**63 - 1 - row["example_id"]} for row in canaries[:2]]
    assert len(ids) == len(canaries) and np.isfinite(scores(model, far, draws=3)).all()


def test_the_model_is_left_as_it_was(trained):
    model, canaries = trained
    model.train()
    scores(model, canaries[:3], draws=3)
    assert model.training and attached_noise(model) is None
    noise = GaussianNoise(0.7, 5).attach(model)
    try:
        scores(model, canaries[:3], draws=3)
        assert (noise.epsilon, noise.seed) == (0.7, 5) and attached_noise(model) is noise
    finally:
        noise.remove()
        model.eval()


def test_a_task_without_a_place_for_noise_is_refused(trained):
    with pytest.raises(InputError, match="no place where noise enters"):
        Task.with_noise(CausalLMTask(), trained[0], NOISE)
