"""The causal-LM task: which logits it gives, what it costs, and the gradient at the input."""

import numpy as np
import pytest
import torch
from torch import nn

from llm_unlearn.tasks import Supervised
from llm_unlearn.tasks.causal_lm import CausalLMTask

pytestmark = pytest.mark.unit

TASK = CausalLMTask()
LENGTHS = (5, 9, 7)
every_kind = pytest.mark.parametrize(
    ("architecture", "lora"),
    [("gpt2", False), ("gpt2", True), ("llama", False), ("llama", True)],
    ids=["gpt2-full", "gpt2-lora", "llama-full", "llama-lora"],
)


def make_batch(extra_padding: int = 0, pad: int = 0) -> dict[str, torch.Tensor]:
    """Three rows of uneven length; every second token of each is supervised, the last two too."""
    generator = np.random.default_rng(0)
    width = max(LENGTHS) + extra_padding
    ids, labels, mask = (torch.full((len(LENGTHS), width), value) for value in (pad, -100, 0))
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.from_numpy(generator.integers(2, 300, size=length))
        mask[row, :length] = 1
        supervised = [t for t in range(length) if t % 2 == 0 or t >= length - 2]
        labels[row, supervised] = ids[row, supervised]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def by_hand(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[int], list[int]]:
    """Full logits of each row alone, without padding, read off at the position before each label."""
    logits, labels, examples = [], [], []
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        full = model(input_ids=batch["input_ids"][row : row + 1, :length]).logits[0]  # (T, V)
        for t in range(1, length):
            if batch["labels"][row, t] != -100:
                logits.append(full[t - 1])
                labels.append(int(batch["labels"][row, t]))
                examples.append(row)
    return torch.stack(logits), labels, examples


class TestSupervised:
    @every_kind
    def test_logits_are_those_of_the_full_computation(self, architecture, lora, make_tiny):
        model = make_tiny(architecture, lora=lora)
        ours = TASK.supervised(model, make_batch())
        logits, labels, examples = by_hand(model, make_batch())
        assert ours.n_examples == 3
        assert ours.labels.tolist() == labels
        assert ours.example.tolist() == examples
        torch.testing.assert_close(ours.logits, logits, atol=1e-5, rtol=1e-5)

    @every_kind
    def test_the_mean_is_over_an_examples_own_positions(self, architecture, lora, make_tiny):
        model, batch = make_tiny(architecture, lora=lora), make_batch()
        ours = TASK.supervised(model, batch).nll()
        for row, length in enumerate(LENGTHS):
            loss = model(
                input_ids=batch["input_ids"][row : row + 1, :length], labels=batch["labels"][row : row + 1, :length]
            ).loss
            torch.testing.assert_close(ours[row], loss, atol=1e-5, rtol=1e-5)

    @every_kind
    def test_more_padding_and_another_pad_token_change_nothing(self, architecture, lora, make_tiny):
        model = make_tiny(architecture, lora=lora)
        plain = TASK.supervised(model, make_batch())
        padded = TASK.supervised(model, make_batch(extra_padding=6, pad=17))
        assert torch.equal(plain.labels, padded.labels)
        assert torch.equal(plain.example, padded.example)
        torch.testing.assert_close(plain.logits, padded.logits, atol=1e-5, rtol=0)

    @every_kind
    def test_the_head_runs_only_where_a_label_is(self, architecture, lora, make_tiny):
        model, batch, rows = make_tiny(architecture, lora=lora), make_batch(), []
        TASK.supervised(model, batch)  # the first time it is asked whether it is causal
        model.get_output_embeddings().register_forward_hook(lambda m, args, out: rows.append(out[..., 0].numel()))
        TASK.supervised(model, batch)
        assert rows == [int((batch["labels"][:, 1:] != -100).sum())]
        assert rows[0] < batch["labels"].numel() - len(LENGTHS)

    def test_an_architecture_whose_head_cannot_be_restricted_gives_the_same(self, tiny_gpt2):
        class Whole(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.inner, self.get_input_embeddings = model, model.get_input_embeddings

            def forward(self, input_ids, attention_mask, use_cache):
                return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

        ours, whole = TASK.supervised(tiny_gpt2, make_batch()), TASK.supervised(Whole(tiny_gpt2), make_batch())
        torch.testing.assert_close(ours.logits, whole.logits, atol=1e-5, rtol=1e-5)

    def test_a_label_on_the_first_token_is_not_a_position(self, tiny_gpt2):
        batch = make_batch()
        assert (batch["labels"][:, 0] != -100).all()
        with_first = TASK.supervised(tiny_gpt2, batch)
        batch["labels"][:, 0] = -100
        assert torch.equal(TASK.supervised(tiny_gpt2, batch).labels, with_first.labels)

    def test_canaries_on_a_model_without_noise_are_refused(self, tiny_gpt2):
        batch = {**make_batch(), "noise_id": torch.tensor([-1, 4, -1])}
        with pytest.raises(ValueError, match="no noise attached"):
            TASK.supervised(tiny_gpt2, batch)
        batch["noise_id"][:] = -1
        torch.testing.assert_close(
            TASK.supervised(tiny_gpt2, batch).logits, TASK.supervised(tiny_gpt2, make_batch()).logits
        )


class TestInputGradient:
    @every_kind
    def test_it_equals_a_loop_over_examples(self, architecture, lora, make_tiny):
        model, batch = make_tiny(architecture, lora=lora), make_batch(extra_padding=3)
        gradient = TASK.input_gradient(model, batch)
        assert gradient.shape == (*batch["input_ids"].shape, 16)
        assert gradient.dtype == torch.float32
        for row, length in enumerate(LENGTHS):
            embeddings = model.get_input_embeddings()(batch["input_ids"][row : row + 1, :length])
            leaf = embeddings.detach().requires_grad_()
            loss = model(inputs_embeds=leaf, labels=batch["labels"][row : row + 1, :length]).loss
            (expected,) = torch.autograd.grad(loss, leaf)
            torch.testing.assert_close(gradient[row, :length], expected[0], atol=1e-6, rtol=1e-4)
            assert (gradient[row, length:] == 0).all()

    @every_kind
    def test_it_leaves_no_weight_gradient_and_no_hook(self, architecture, lora, make_tiny):
        model = make_tiny(architecture, lora=lora)
        requires = [p.requires_grad for p in model.parameters()]
        TASK.input_gradient(model, make_batch())
        assert all(p.grad is None for p in model.parameters())
        assert requires == [p.requires_grad for p in model.parameters()]
        assert not model.get_input_embeddings()._forward_hooks

    def test_no_hook_is_left_after_an_error(self, tiny_gpt2):
        batch = make_batch()
        batch["input_ids"][0, 0] = 10_000  # outside the vocabulary
        with pytest.raises(IndexError):
            TASK.input_gradient(tiny_gpt2, batch)
        assert not tiny_gpt2.get_input_embeddings()._forward_hooks

    def test_it_works_where_gradients_are_switched_off_and_weights_are_frozen(self, tiny_gpt2):
        expected = TASK.input_gradient(tiny_gpt2, make_batch())
        tiny_gpt2.requires_grad_(False)
        with torch.no_grad():
            torch.testing.assert_close(TASK.input_gradient(tiny_gpt2, make_batch()), expected)

    def test_noise_ids_are_ignored(self, tiny_gpt2):
        from llm_unlearn.tasks.embedding_noise import GaussianNoise

        clean = TASK.input_gradient(tiny_gpt2, make_batch())
        GaussianNoise(1.0, 0).attach(tiny_gpt2)
        noisy = TASK.input_gradient(tiny_gpt2, {**make_batch(), "noise_id": torch.tensor([1, 2, 3])})
        torch.testing.assert_close(noisy, clean)


class TestRows:
    supervised = Supervised(
        states=torch.arange(36.0).view(6, 6).sin(),
        labels=torch.arange(6),
        example=torch.tensor([0, 0, 1, 2, 2, 3]),
        n_examples=4,
    )

    def test_split_into_sets(self):
        sets = self.supervised.split({"forget": slice(0, 2), "retain": slice(2, 4)})
        first, second = sets["forget"], sets["retain"]
        assert (first.labels.tolist(), first.example.tolist(), first.n_examples) == ([0, 1, 2], [0, 0, 1], 2)
        assert (second.labels.tolist(), second.example.tolist(), second.n_examples) == ([3, 4, 5], [0, 0, 1], 2)
        assert torch.equal(torch.cat([first.logits, second.logits]), self.supervised.logits)
        torch.testing.assert_close(torch.cat([first.nll(), second.nll()]), self.supervised.nll())
