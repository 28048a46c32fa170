"""Numbers by a counter: those that the paper's authors publish, their distribution, and what they depend on."""

import pytest
import torch
from scipy import stats

from llm_unlearn.trainers.support import normal_draws as draws
from llm_unlearn.trainers.support.normal_draws import normal_draws, philox

pytestmark = pytest.mark.unit

CPU, ONES = torch.device("cpu"), 0xFFFFFFFF


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


# known answers of philox4x32-10 in Random123, tests/kat_vectors
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert philox(words(*counter), key) == words(*expected)


def test_they_are_standard_normal_and_independent():
    first, second, third = (normal_draws(torch.Size([60_001]), *of, CPU) for of in ((5, 0), (5, 1), (6, 0)))
    assert stats.kstest(first.numpy(), "norm").pvalue > 0.01
    # Box and Muller's pairs, other streams and other keys, neighbours
    for a, b in ((first, second), (first, third), (first[1:], first[:-1]), (first[2:], first[:-2])):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / len(a) ** 0.5
        assert abs(torch.corrcoef(torch.stack([a, b]).square())[0, 1]) < 4 / len(a) ** 0.5


def test_number_i_does_not_depend_on_how_many_are_drawn_nor_in_what_portions(monkeypatch):
    whole = normal_draws(torch.Size([7, 11]), 2**63 + 5, 3, CPU)
    assert whole.shape == (7, 11) and whole.dtype == torch.float32
    assert torch.equal(normal_draws(torch.Size([30]), 2**63 + 5, 3, CPU), whole.flatten()[:30])
    monkeypatch.setattr(draws, "CHUNK", 4)
    torch.testing.assert_close(normal_draws(whole.shape, 2**63 + 5, 3, CPU), whole, rtol=1e-5, atol=1e-6)


def test_none_of_it_is_made_on_the_host():
    assert normal_draws(torch.Size([5]), 1, 0, torch.device("meta")).is_meta
