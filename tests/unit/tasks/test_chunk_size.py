"""How many positions the head takes at a time, by arithmetic."""

import pytest
import torch

from llm_unlearn.tasks.chunk_size import assumed_card, card_memory, chunk_positions

pytestmark = pytest.mark.unit

GIB = 2**30


@pytest.mark.parametrize(
    ("vocabulary", "itemsize", "memory", "positions"),
    [
        (128_256, 2, 80 * GIB, 1408),  # 2.5 GiB / (14 · 128256) = 1494, in tiles of 128
        (128_256, 4, 80 * GIB, 1280),  # 16 bytes a logit: 1308
        (128_256, 2, 24 * GIB, 384),  # 448
        (128_256, 2, 4 * GIB, 130),  # 74, less than 2²⁴ logits, which is what every card had
        (32_000, 2, 80 * GIB, 4096),  # 5991, more than makes products faster
        (2_048, 2, 80 * GIB, 8192),  # 2²⁴ logits are more positions than that
        (2**25, 2, 8 * GIB, 1),  # there is no less
        (128_256, 2, 0, 130),  # a card that does not say
        (50_257, 4, None, 83),  # on a CPU 2²² logits, whatever its memory
        (2**23, 4, None, 1),
    ],
)
def test_by_hand(vocabulary, itemsize, memory, positions):
    assert chunk_positions(vocabulary, itemsize, memory) == positions


def test_what_a_chunk_takes_stays_within_its_share_and_grows_with_the_card():
    for vocabulary in (16_000, 50_257, 128_256, 262_144):
        sizes = [chunk_positions(vocabulary, 2, gib * GIB) for gib in (16, 24, 40, 80, 141)]
        assert sizes == sorted(sizes)
        for gib, size in zip((16, 24, 40, 80, 141), sizes, strict=True):
            assert size * vocabulary <= 2**24 or size * vocabulary * 14 <= gib * GIB / 32


def test_the_memory_of_devices(monkeypatch):
    class Card:
        total_memory = 80 * GIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    assert card_memory(torch.device("cuda", 1)) == 80 * GIB
    assert card_memory(torch.device("cpu")) is None
    assert card_memory(torch.device("mps")) == 0


def test_another_card_may_be_assumed_for_as_long_as_it_lasts():
    cpu = torch.device("cpu")
    with assumed_card(80 * GIB):
        assert card_memory(cpu) == 80 * GIB
        with assumed_card(None):
            assert card_memory(cpu) is None
        assert card_memory(cpu) == 80 * GIB
    assert card_memory(cpu) is None
