"""Scores of membership attacks against loops and arithmetic by hand."""

import zlib

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.membership_scores import lowercase_score, min_k_score, reference_score, zlib_score

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 1.0])
def test_min_k_is_the_mean_of_the_lowest_tokens_of_each_example(share):
    generator = np.random.default_rng(0)
    lengths = [1, 3, 5, 10, 40]
    tokens = [generator.normal(-3, 2, n) for n in lengths]
    owner = np.repeat(np.arange(5), lengths)
    mixed = generator.permutation(owner.size)  # the order of tokens must not matter
    expected = [np.mean(sorted(t)[: max(1, int(share * len(t) + 1e-9))]) for t in tokens]
    found = min_k_score(np.concatenate(tokens)[mixed], owner[mixed], share)
    np.testing.assert_allclose(found, expected)


def test_zlib_divides_by_the_bytes_of_the_compressed_text():
    texts = ["the same the same the same the same", "äöü€ 1234 qwertz"]
    sizes = [len(zlib.compress(text.encode())) for text in texts]
    assert zlib_score([3.5, 2.0], texts).tolist() == [-3.5 / sizes[0], -2.0 / sizes[1]]


def test_reference_is_what_training_won_over_a_model_that_never_saw_it():
    assert reference_score([1.0, 2.5], [2.0, 2.0]).tolist() == [1.0, -0.5]


def test_lowercase_divides_by_the_loss_of_the_text_in_lower_case():
    perplexity, lowered = np.exp([1.5, 2.0, 0.5]), np.exp([3.0, 2.0, 0.25])
    expected = -np.log(perplexity) / np.log(lowered)
    np.testing.assert_allclose(lowercase_score([1.5, 2.0, 0.5], [3.0, 2.0, 0.25]), expected)
    assert lowercase_score([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]).tolist() == [-1.0, -np.inf, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: min_k_score([1.0, 2.0], [0]), "token_scores has 2 examples and example has 1"),
        (lambda: min_k_score([1.0, 2.0], [0, 2]), "example: 1 has no token"),
        (lambda: min_k_score([1.0], [0], share=0.0), r"share: lies in \(0, 1\]"),
        (lambda: min_k_score([float("nan")], [0]), "token_scores: 1 of 1 values"),
        (lambda: zlib_score([1.0], ["a", "b"]), "nll has 1 examples and texts has 2"),
        (lambda: lowercase_score([1.0], [1.0, 2.0]), "nll has 1 examples and lowered_nll has 2"),
        (lambda: lowercase_score([1.0], [-1.0]), "at least 0"),
        (lambda: reference_score([1.0], [1.0, 2.0]), "nll has 1 examples and reference_nll has 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
