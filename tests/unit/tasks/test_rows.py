"""What the host knows of a batch; rows laid end to end; and that a model says the same of packed rows as of padded."""

import pytest
import torch
from architectures import tiny_config, tiny_model
from torch import nn

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.tasks import causal_lm, probe
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import GaussianNoise
from llm_unlearn.tasks.packing import BatchRows, Packing

pytestmark = pytest.mark.unit

LENGTHS = (3, 9, 2, 4, 5)
both_architectures = pytest.mark.parametrize("architecture", ["gpt2", "llama"])


def batch(noisy: bool = False, lengths: tuple[int, ...] = LENGTHS) -> dict:
    rows = [
        {
            "input_ids": list(range(10 * i + 2, 10 * i + 2 + n)),
            "labels": [-100, *range(10 * i + 3, 10 * i + 2 + n)],
            **({"noise_id": 3 * i if i % 2 else -1} if noisy else {}),
        }
        for i, n in enumerate(lengths)
    ]
    return CausalLMCollator(0)(rows)


class TestBatchRows:
    def test_what_a_collator_says_is_what_the_tensors_hold(self):
        for noisy in (False, True):
            given = batch(noisy)
            tensors = {key: value for key, value in given.items() if key != "rows"}
            assert (
                given["rows"]
                == BatchRows.of(tensors)
                == BatchRows(LENGTHS, tuple(n - 1 for n in LENGTHS), (-1, 3, -1, 9, -1) if noisy else None)
            )

    def test_padding_on_the_left_is_not_taken_for_padding_on_the_right(self):
        tensors = {key: value.flip(1) for key, value in batch().items() if key != "rows"}
        assert BatchRows.of(tensors) is None

    def test_it_is_sliced_and_joined_as_tensors_are(self):
        rows = batch(noisy=True)["rows"]
        assert rows[:2] + rows[2:] == rows
        assert rows[1:3] == BatchRows((9, 2), (8, 1), (3, -1))
        assert batch()["rows"][1:3] + batch()["rows"][:1] == BatchRows((9, 2, 3), (8, 1, 2))
        assert rows.unsupervised(2).supervised == (2, 8, 0, 0, 0)
        assert rows.to("meta", non_blocking=True) is rows


class TestPacking:
    def test_by_hand(self):
        """9 alone; 5 and 4 fill the second bin; 3 and 2 the third, 4 of which are left over."""
        packing = Packing.of(LENGTHS, 9, 9, torch.device("cpu"))
        assert packing.starts.tolist() == list(packing.starts_on_host) == [18, 0, 21, 14, 9]
        assert packing.position_ids.tolist() == [[*range(9)], [*range(5), *range(4)], [0, 1, 2, 0, 1, 0, 1, 2, 3]]
        ids = batch()["input_ids"]
        assert packing.take(ids).tolist() == [
            [*range(12, 21)],
            [*range(42, 47), *range(32, 36)],
            [2, 3, 4, 22, 23, 2, 2, 2, 2],
        ]

    @pytest.mark.parametrize("capacity", [9, 23, 40])
    def test_every_token_stands_in_one_place(self, capacity):
        packing = Packing.of(LENGTHS, 9, capacity, torch.device("cpu"))
        taken = torch.zeros(packing.index.numel())
        for row, (start, length) in enumerate(zip(packing.starts.tolist(), LENGTHS, strict=True)):
            taken[start : start + length] += 1
            assert start // capacity == (start + length - 1) // capacity  # no row goes on in the next bin
            assert packing.index.flatten()[start : start + length].tolist() == [9 * row + t for t in range(length)]
        assert taken.max() == 1 and taken.sum() == sum(LENGTHS)


def gradients(task: CausalLMTask, model: nn.Module, inputs: dict, function) -> list[torch.Tensor]:
    loss = task.compute(model, inputs, function)
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@both_architectures
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
class TestSameNumbers:
    """Packed, padded, and with logits as a whole: identical loss and gradients."""

    @pytest.fixture
    def model(self, architecture, lora, noisy, make_tiny):
        model = make_tiny(architecture, lora=lora)
        if noisy:
            GaussianNoise(0.5, 7).attach(model)
        return model

    def test_of_the_loss(self, model, noisy, monkeypatch):
        widths = []
        model.get_input_embeddings().register_forward_hook(lambda m, args, out: widths.append(tuple(args[0].shape)))
        runs = [
            gradients(CausalLMTask(pack), model, batch(noisy), lambda found: found.nll().square().sum())
            for pack in (True, False)
        ]
        assert (3, 9) in widths and (5, 9) in widths
        monkeypatch.setattr(causal_lm, "plain_head", lambda *_: None)
        runs.append(gradients(CausalLMTask(), model, batch(noisy), lambda found: found.nll().square().sum()))
        for other in runs[1:]:
            for ours, theirs in zip(runs[0], other, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()) + 1e-7)

    def test_of_hidden_states(self, model, noisy):
        packed, padded = (CausalLMTask(pack).hidden(model, batch(noisy), 0) for pack in (True, False))
        torch.testing.assert_close(packed.states, padded.states, rtol=1e-5, atol=1e-5)
        assert torch.equal(packed.example, padded.example) and packed.counts == padded.counts


@both_architectures
def test_rows_of_one_length_are_not_packed_and_need_no_mask(architecture, make_tiny):
    model, given = make_tiny(architecture), []
    model.register_forward_pre_hook(lambda m, args, kwargs: given.append(set(kwargs)), with_kwargs=True)
    CausalLMTask().compute(model, batch(lengths=(6, 6, 6)), lambda found: found.nll().sum())
    assert given[-1] == {"input_ids", "use_cache"}
    CausalLMTask().compute(model, batch(lengths=(6, 6, 5)), lambda found: found.nll().sum())  # it would save nothing
    assert given[-1] == {"input_ids", "use_cache", "attention_mask"}


@both_architectures
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_on_the_right_needs_no_mask(architecture, lora, dtype, make_tiny, monkeypatch):
    """To the bit, but for the gradients of shared key and value heads, whose sum is then the kernel's."""
    model, given, task = make_tiny(architecture, lora=lora).to(dtype), [], CausalLMTask(pack=False)
    GaussianNoise(0.5, 7).attach(model)
    model.register_forward_pre_hook(lambda m, args, kwargs: given.append("attention_mask" in kwargs), with_kwargs=True)
    masked = gradients(task, model, batch(noisy=True), lambda found: found.nll().sum())
    assert given[-1]
    monkeypatch.setattr(causal_lm, "UNMASKED", ("cpu",))  # as on a GPU
    unmasked = gradients(task, model, batch(noisy=True), lambda found: found.nll().sum())
    assert not given[-1]
    assert torch.equal(unmasked[0], masked[0])
    error = 0.0 if architecture == "gpt2" else {torch.float32: 1e-6, torch.bfloat16: 0.02}[dtype]
    for ours, theirs in zip(unmasked, masked, strict=True):
        assert (ours - theirs).abs().max() <= error * theirs.abs().max()


def test_flash_attention_needs_no_padding_at_all(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(tiny_gpt2.config, "_attn_implementation_internal", "flash_attention_2")
    for question in ("plain_head", "keeps_apart"):  # the kernel that would answer them is not there
        monkeypatch.setattr(causal_lm, question, lambda *_: True)
    rows = BatchRows(LENGTHS, LENGTHS)
    packing = CausalLMTask()._packing(tiny_gpt2, rows, torch.zeros(5, 9, dtype=torch.long))
    assert packing.index.shape == (1, sum(LENGTHS))


class TestProbe:
    class Mixes(nn.Module):
        """A causal LM around a tiny one that does to its logits, or to its position ids, what some architectures do."""

        def __init__(self, inner, after=lambda logits: logits, positions=True) -> None:
            super().__init__()
            self.inner, self.after, self.positions, self.config = inner, after, positions, inner.config

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, position_ids=None, **kwargs):
            output = self.inner(**kwargs, position_ids=position_ids if self.positions else None)
            output.logits = self.after(output.logits)
            return output

    @both_architectures
    @pytest.mark.parametrize("lora", [False, True])
    def test_what_is_known_of_gpt2_and_llama(self, architecture, lora, make_tiny):
        model = make_tiny(architecture, lora=lora).train()
        model.get_output_embeddings().eval()
        state = torch.get_rng_state()
        head = probe.plain_head(model, model.get_base_model() if lora else model)
        assert head is model.get_output_embeddings() and probe.keeps_apart(model, head)
        assert model.training and not head.training  # left as it was
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(
        "after",
        [lambda z: 30 * torch.tanh(z / 30), lambda z: z * 0.0625, lambda z: z[..., :2]],
        ids=["soft cap", "scale", "cut"],
    )
    def test_a_model_that_does_something_to_its_logits_is_computed_from_them(self, after, tiny_gpt2):
        model = self.Mixes(tiny_gpt2, after)
        assert probe.plain_head(model, model) is None
        seen = CausalLMTask().compute(model, batch(), lambda found: found.logits)
        inputs = {key: value for key, value in batch().items() if key in ("input_ids", "attention_mask")}
        expected = model(**inputs).logits[batch()["labels"].roll(-1, 1).index_fill(1, torch.tensor([8]), -100) != -100]
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)

    def test_a_model_that_mixes_packed_rows_is_padded_and_says_so(self, tiny_gpt2):
        model = self.Mixes(tiny_gpt2, positions=False)
        with pytest.warns(UserWarning, match="Mixes .*packed rows.*padded"):
            loss = CausalLMTask().compute(model, batch(), lambda found: found.nll().sum())
        torch.testing.assert_close(loss, CausalLMTask().compute(tiny_gpt2, batch(), lambda found: found.nll().sum()))

    @pytest.mark.parametrize("name", ["bloom", "falcon_h1", "jamba"])
    def test_rows_that_mix_a_little_are_seen_in_small_weights(self, name):
        """ALiBi has no position ids, a state space runs on from row to row: what leaks is as small as weights are."""
        config = tiny_config(name)
        config.initializer_range, config.vocab_size = 0.02, 64
        model, inputs = tiny_model(name, config=config), batch()
        assert not probe.keeps_apart(model, probe.plain_head(model, model))
        packed, padded = (
            CausalLMTask(pack).compute(model, inputs, lambda found: found.nll()) for pack in (True, False)
        )
        assert torch.equal(packed, padded)

    def test_a_model_that_sees_what_it_predicts_is_refused(self):
        from transformers import BertConfig, BertLMHeadModel

        sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = BertLMHeadModel(BertConfig(**sizes, intermediate_size=16))
        for look in (CausalLMTask().compute, lambda *given: CausalLMTask().supervised(*given[:2])):
            with pytest.raises(InputError, match="BertLMHeadModel: .*tokens after it.*is_decoder"):
                look(model, batch(), lambda found: found.nll().sum())
        model = BertLMHeadModel(BertConfig(**sizes, intermediate_size=16, is_decoder=True))
        assert torch.isfinite(CausalLMTask().compute(model, batch(), lambda found: found.nll().sum()))

    def test_a_head_under_an_adapter_is_not_taken_out(self, make_tiny):
        from peft import LoraConfig, get_peft_model

        for options in (
            {"target_modules": ["lm_head", "q_proj"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        ):
            model = get_peft_model(make_tiny("llama"), LoraConfig(r=2, **options))
            assert probe.plain_head(model, model.get_base_model()) is None
            assert torch.isfinite(CausalLMTask().compute(model, batch(), lambda found: found.nll().sum()))
