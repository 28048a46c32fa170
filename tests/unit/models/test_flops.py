"""FLOPs against parameter counts written out by hand."""

import pytest
import torch

from llm_unlearn.models.flops import FlopCounter

pytestmark = pytest.mark.unit

D, MLP, LAYERS = 16, 24, 2
# GPT-2: attention in D → 3D and out D → D, MLP D → 4D → D
GPT2_BODY = LAYERS * (3 * D * D + D * D + 2 * 4 * D * D)
# Llama, 2 heads of 8 and 1 key-value head: q D → D, k and v D → 8, o D → D; gate and up D → 24, down 24 → D
LLAMA_BODY = LAYERS * (2 * D * D + 2 * D * 8 + 3 * D * MLP)
BODY = {"gpt2": GPT2_BODY, "llama": LLAMA_BODY}
# rank 2: (in + out) × 2 of c_attn D → 3D and c_fc D → 4D; of q D → D, v D → 8 and up D → 24
ADAPTER = {"gpt2": LAYERS * 2 * (4 * D + 5 * D), "llama": LAYERS * 2 * (2 * D + (D + 8) + (D + MLP))}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
class TestFull:
    def test_weights_are_counted_once_and_lookups_not_at_all(self, architecture, make_tiny):
        """GPT-2's head is its input embedding, so that multiplies; Llama's embedding only looks up."""
        model = make_tiny(architecture)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied == (architecture == "gpt2")
        body, head = BODY[architecture], model.config.vocab_size * D
        assert FlopCounter.of(model) == FlopCounter(body, head, body, head)

    def test_a_forward_pass_is_2_per_weight_and_a_training_pass_6(self, architecture, make_tiny):
        model = make_tiny(architecture)
        head = model.config.vocab_size * D
        counter = FlopCounter.of(model)
        assert counter.forward(100, 30) == 2 * (100 * BODY[architecture] + 30 * head)
        assert counter.training(100, 30) == 6 * (100 * BODY[architecture] + 30 * head)

    def test_the_head_costs_only_where_it_runs(self, architecture, make_tiny):
        counter = FlopCounter.of(make_tiny(architecture))
        assert counter.forward(100, 0) == 2 * 100 * BODY[architecture]

    def test_frozen_weights_cost_no_weight_gradient(self, architecture, make_tiny):
        model = make_tiny(architecture).requires_grad_(False)
        head = model.config.vocab_size * D
        assert FlopCounter.of(model).training(10, 5) == 4 * (10 * BODY[architecture] + 5 * head)
        model.get_output_embeddings().weight.requires_grad_(True)
        assert FlopCounter.of(model).training(10, 5) == 4 * (10 * BODY[architecture] + 5 * head) + 2 * 5 * head


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_lora_adds_its_adapter_to_the_body_and_trains_nothing_else(architecture, make_tiny):
    model = make_tiny(architecture, lora=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == ADAPTER[architecture]
    head, body = model.config.vocab_size * D, BODY[architecture] + ADAPTER[architecture]
    counter = FlopCounter.of(model)
    assert counter == FlopCounter(body, head, ADAPTER[architecture], 0)
    # 2 forward, 2 for activations, 2 for what trains
    assert counter.training(50, 7) == 4 * (50 * body + 7 * head) + 2 * 50 * ADAPTER[architecture]
    assert counter.training(50, 7) < FlopCounter.of(make_tiny(architecture)).training(50, 7)


def test_a_4_bit_weight_counts_as_the_weights_it_stands_for():
    packed = torch.nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = type("QuantState", (), {"shape": torch.Size([8, 8])})()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = packed, torch.nn.Linear(8, 5, bias=False)

        def get_output_embeddings(self):
            return self.head

    assert FlopCounter.of(Model()) == FlopCounter(64, 40, 0, 40)


def test_it_agrees_with_torchs_own_counter(make_tiny):
    """Matrix products of a forward pass counted by torch, less those of attention itself (T² terms)."""
    from torch.utils.flop_counter import FlopCounterMode

    model, length = make_tiny("llama"), 8
    with FlopCounterMode(display=False) as mode, torch.no_grad():
        model(input_ids=torch.arange(2, 2 + length)[None], use_cache=False)
    measured = sum(n for op, n in mode.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm"))
    assert measured == FlopCounter.of(model).forward(length, length)
