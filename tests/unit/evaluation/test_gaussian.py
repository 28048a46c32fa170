"""The Gaussian score: its null, its power, its sign, and what it must not depend on."""

import numpy as np
import pytest
import torch
from scipy import stats

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.tasks.noise import unit_noise

SEED = 11  # of the noise, see conftest.py


def scores(model, canaries, seeds, **options):
    clean = [{k: row[k] for k in ("input_ids", "labels", "example_id")} for row in canaries]
    collator = CausalLMCollator(0, pad_to=options.pop("pad_to", 0))
    return gaussian_scores(model, clean, collator, seeds, **options)


def test_fresh_noise_on_a_trained_model_is_standard_normal(trained):
    model, canaries = trained
    fresh = scores(model, canaries, list(range(1000, 1050)))  # 60 canaries × 50 noises never trained on
    assert stats.kstest(fresh.ravel(), "norm").pvalue > 0.01
    p_values = [gaussian_test(column).p_value for column in fresh.T]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.2 < np.mean(fresh > 0.0) < 0.8


def test_both_p_values_are_uniform_over_200_fresh_noises_of_a_trained_model(trained):
    model, canaries = trained
    fresh = scores(model, canaries, [SEED, *range(5000, 5200)])
    tests = [gaussian_test(fresh[:, column]) for column in range(1, 201)]
    for name in ("p_value", "chi2_p_value"):
        values = np.array([getattr(test, name) for test in tests])
        assert stats.kstest(values, "uniform").pvalue > 0.01, name
        assert getattr(gaussian_test(fresh[:, 0]), name) < values.min()  # the noise that was trained on


def test_the_trained_noise_is_found_and_its_sign_is_positive(trained):
    model, canaries = trained
    result = gaussian_test(scores(model, canaries, [SEED])[:, 0])
    assert result.mean > 1.0
    assert result.p_value < 1e-6
    assert result.tpr_at_fpr["0.01"] > 0.1


def test_a_model_that_never_saw_the_noise_passes(trained, fresh_model):
    _, canaries = trained
    result = gaussian_test(scores(fresh_model, canaries, [SEED])[:, 0])
    assert result.p_value > 1e-3


def test_it_equals_a_loop_over_examples(trained):
    model, canaries = trained
    model.eval()
    ours = scores(model, canaries[:6], [SEED])[:, 0]
    for row, score in zip(canaries[:6], ours, strict=True):
        embeddings = model.get_input_embeddings()(torch.tensor([row["input_ids"]])).detach().requires_grad_(True)
        loss = model(inputs_embeds=embeddings, labels=torch.tensor([row["labels"]])).loss
        (gradient,) = torch.autograd.grad(loss, embeddings)
        g = gradient[0].double().numpy()
        xi = 0.1 * unit_noise(SEED, row["example_id"], *g.shape).astype(np.float64)
        assert score == pytest.approx(-np.vdot(g, xi) / (0.1 * np.linalg.norm(g)), abs=1e-4)


def test_padding_and_batch_size_change_nothing(trained):
    model, canaries = trained
    alone = scores(model, canaries[:9], [SEED], batch_size=1)
    np.testing.assert_allclose(alone, scores(model, canaries[:9], [SEED], batch_size=9), atol=1e-4)
    np.testing.assert_allclose(alone, scores(model, canaries[:9], [SEED], batch_size=4, pad_to=30), atol=1e-4)


def test_bfloat16_gives_nearly_the_same_score(trained):
    import copy

    model, canaries = trained
    half = copy.deepcopy(model).to(torch.bfloat16)
    exact, rounded = scores(model, canaries, [SEED]), scores(half, canaries, [SEED])
    assert np.abs(exact - rounded).mean() < 0.1
    assert abs(exact.mean() - rounded.mean()) < 0.1


def test_no_weight_gradient_and_no_mode_is_left_behind(trained):
    model, canaries = trained
    model.train()
    scores(model, canaries[:2], [SEED])
    assert model.training
    model.zero_grad(set_to_none=True)
    scores(model, canaries[:2], [SEED])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_with_no_gradient_gives_nan_not_a_number_that_looks_like_a_score(trained, fresh_model):
    _, canaries = trained
    model = fresh_model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert np.isnan(scores(model, canaries[:3], [SEED])).all()
