"""Gaussian noise at the embedding output: the draw, the hooks, and real training with them."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise
from llm_unlearn.tasks.noise import unit_noise

pytestmark = pytest.mark.unit

EPSILON, SEED, WIDTH = 0.5, 7, 16


class TestDraw:
    def test_it_is_the_same_every_time_whatever_the_global_seed(self):
        np.random.seed(0)
        first = unit_noise(SEED, 3, 10, WIDTH)
        np.random.seed(1)
        np.testing.assert_array_equal(first, unit_noise(SEED, 3, 10, WIDTH))
        assert first.dtype == np.float32

    def test_it_is_the_published_stream(self):
        """A Philox stream keyed by (seed, example id): another implementation can make the same noise."""
        expected = np.random.Generator(np.random.Philox(key=[7, 3])).standard_normal((4, 2), dtype=np.float32)
        np.testing.assert_array_equal(unit_noise(7, 3, 4, 2), expected)

    def test_a_shorter_draw_is_the_beginning_of_a_longer_one(self):
        np.testing.assert_array_equal(unit_noise(SEED, 3, 40, WIDTH)[:7], unit_noise(SEED, 3, 7, WIDTH))

    def test_it_is_standard_normal_and_independent_between_examples_and_seeds(self):
        draws = {key: unit_noise(*key, 200, WIDTH).ravel() for key in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2**40))}
        for draw in draws.values():
            assert stats.kstest(draw, "norm").pvalue > 1e-3
        keys = list(draws)
        for i, a in enumerate(keys):
            for b in keys[i + 1 :]:
                assert abs(np.corrcoef(draws[a], draws[b])[0, 1]) < 5 / np.sqrt(200 * WIDTH)

    @pytest.mark.parametrize(
        ("epsilon", "seed", "message"),
        [
            (0.0, 0, "epsilon must be above 0"),
            (-1.0, 0, "epsilon must be above 0"),
            (float("nan"), 0, "epsilon must be above 0"),
            (1.0, -1, "seed must be 0 or more"),
        ],
    )
    def test_bad_settings_are_refused(self, epsilon, seed, message):
        with pytest.raises(InputError, match=message):
            GaussianNoise(epsilon, seed)


def embeddings_of(model: torch.nn.Module, **inputs) -> torch.Tensor:
    """What the embedding gives to the rest of the model, (B, T, d)."""
    captured = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: captured.append(output.detach().clone())
    )
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    finally:
        handle.remove()
    assert len(captured) == 1
    return captured[0]


IDS = torch.tensor([[5, 6, 7, 8, 0, 0], [9, 10, 11, 12, 13, 14], [15, 16, 17, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 1, 0, 0, 0]])
NOISE_ID = torch.tensor([4, -1, 0])


class TestHooks:
    @pytest.fixture(params=["gpt2", "llama"])
    def model(self, request, make_tiny):
        model = make_tiny(request.param)
        GaussianNoise(EPSILON, SEED).attach(model)
        return model

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_exactly_epsilon_z_is_added_at_real_tokens(self, side, model):
        ids, mask = (IDS, MASK) if side == "right" else (IDS.flip(1), MASK.flip(1))
        clean = embeddings_of(model, input_ids=ids, attention_mask=mask)
        difference = embeddings_of(model, input_ids=ids, attention_mask=mask, noise_id=NOISE_ID) - clean
        for row, noise_id in enumerate(NOISE_ID.tolist()):
            real = mask[row].bool()
            expected = torch.zeros(int(real.sum()), WIDTH)
            if noise_id >= 0:
                expected = EPSILON * torch.from_numpy(unit_noise(SEED, noise_id, len(expected), WIDTH))
            torch.testing.assert_close(difference[row, real], expected, atol=1e-6, rtol=0)
            assert (difference[row, ~real] == 0).all()

    def test_without_a_mask_every_token_takes_noise(self, model):
        clean = embeddings_of(model, input_ids=IDS)
        noisy = embeddings_of(model, input_ids=IDS, noise_id=NOISE_ID)
        torch.testing.assert_close(
            noisy[0] - clean[0], EPSILON * torch.from_numpy(unit_noise(SEED, 4, 6, WIDTH)), atol=1e-6, rtol=0
        )
        assert torch.equal(noisy[1], clean[1])

    def test_the_noise_of_one_batch_does_not_leak_into_the_next(self, model):
        clean = embeddings_of(model, input_ids=IDS, attention_mask=MASK)
        embeddings_of(model, input_ids=IDS, attention_mask=MASK, noise_id=NOISE_ID)
        with torch.no_grad():  # the embedding alone, as methods that work on embeddings call it
            assert torch.equal(model.get_input_embeddings()(IDS), clean)
        assert torch.equal(embeddings_of(model, input_ids=IDS, attention_mask=MASK), clean)

    def test_the_loss_sees_it(self, model):
        batch = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.where(MASK.bool(), IDS, -100)}
        clean = CausalLMTask().supervised(model, batch).nll()
        noisy = CausalLMTask().supervised(model, {**batch, "noise_id": NOISE_ID}).nll()
        changed = (clean - noisy).abs() > 1e-4
        assert changed.tolist() == [True, False, True]

    def test_generation_is_without_noise(self, model):
        arguments = {"attention_mask": MASK[:, :3], "max_new_tokens": 4, "do_sample": False}
        noisy = model.generate(IDS[:, :3], **arguments)
        attached_noise(model).remove()
        assert torch.equal(noisy, model.generate(IDS[:, :3], **arguments))

    def test_training_without_noise_ids_is_refused_and_evaluation_is_not(self, model):
        model.train()
        with pytest.raises(ValueError, match="the batch has no `noise_id`"):
            model(input_ids=IDS)
        model.eval()
        model(input_ids=IDS)

    def test_attaching_twice_is_refused(self, model):
        with pytest.raises(InputError, match="already has Gaussian noise"):
            GaussianNoise(1.0, 0).attach(model)

    def test_removing_restores_the_model(self, model):
        clean = embeddings_of(model, input_ids=IDS, attention_mask=MASK)
        attached_noise(model).remove()
        assert attached_noise(model) is None
        assert not model._forward_pre_hooks
        assert not model.get_input_embeddings()._forward_hooks
        assert torch.equal(embeddings_of(model, input_ids=IDS, attention_mask=MASK), clean)
        GaussianNoise(1.0, 0).attach(model)  # and another can be put on

    def test_a_deep_copy_works_on_its_own(self, model):
        duplicate = copy.deepcopy(model)
        inputs = {"input_ids": IDS, "attention_mask": MASK, "noise_id": NOISE_ID}
        noisy = embeddings_of(model, **inputs)
        assert torch.equal(embeddings_of(duplicate, **inputs), noisy)
        assert attached_noise(duplicate) is not attached_noise(model)
        attached_noise(model).remove()
        assert attached_noise(model) is None
        assert torch.equal(embeddings_of(duplicate, **inputs), noisy)
        attached_noise(duplicate).remove()
        assert not torch.equal(embeddings_of(duplicate, input_ids=IDS, attention_mask=MASK), noisy)

    def test_in_bfloat16(self, model):
        model.to(torch.bfloat16)
        clean = embeddings_of(model, input_ids=IDS, attention_mask=MASK)
        noisy = embeddings_of(model, input_ids=IDS, attention_mask=MASK, noise_id=NOISE_ID)
        assert noisy.dtype == torch.bfloat16
        xi = (EPSILON * torch.from_numpy(unit_noise(SEED, 4, 4, WIDTH))).bfloat16()
        assert torch.equal(noisy[0, :4], clean[0, :4] + xi)
        assert torch.equal(noisy[1], clean[1])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_under_lora_the_noise_arrives_and_gradients_reach_the_adapter(architecture, checkpointing, make_tiny):
    model = make_tiny(architecture, lora=True)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "noise_id": NOISE_ID}
    clean = embeddings_of(model, input_ids=IDS, attention_mask=MASK)
    if checkpointing:
        model.enable_input_require_grads()
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    GaussianNoise(EPSILON, SEED).attach(model)
    noisy = embeddings_of(model, **inputs)
    torch.testing.assert_close(
        noisy[0, :4] - clean[0, :4], EPSILON * torch.from_numpy(unit_noise(SEED, 4, 4, WIDTH)), atol=1e-6, rtol=0
    )
    model.train()
    labels = torch.where(MASK.bool(), IDS, -100)
    CausalLMTask().supervised(model, {**inputs, "labels": labels}).nll().sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if "lora_" in n}
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients.values())
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n)


def test_checkpointing_changes_no_gradient(make_tiny):
    inputs = {
        "input_ids": IDS,
        "attention_mask": MASK,
        "noise_id": NOISE_ID,
        "labels": torch.where(MASK.bool(), IDS, -100),
    }
    gradients = []
    for checkpointing in (False, True):
        model = make_tiny("gpt2").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        GaussianNoise(EPSILON, SEED).attach(model)
        CausalLMTask().supervised(model, inputs).nll().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-6, rtol=1e-5)


class TestTraining:
    """A real SFTTrainer: the first block must see x + ξ for canaries and x for the others."""

    rows = Dataset.from_list(
        [
            {
                "input_ids": [5 + i, 6 + i, 7 + i, *range(8, 8 + i)],
                "labels": [5 + i, 6 + i, 7 + i, *range(8, 8 + i)],
                "noise_id": 100 + i if i % 2 else -1,
            }
            for i in range(4)
        ]
    )

    def trainer(self, model, tokenizer, folder, **settings):
        from trl import SFTConfig, SFTTrainer

        settings = {
            "remove_unused_columns": False,
            "max_length": None,
            "learning_rate": 0.0,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            **settings,
        }
        args = SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            max_steps=2,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            **settings,
        )
        return SFTTrainer(
            model=model,
            args=args,
            train_dataset=self.rows,
            processing_class=tokenizer,
            data_collator=CausalLMCollator(tokenizer.pad_token_id),
        )

    @pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
    @pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
    def test_the_model_sees_x_plus_xi_for_canaries(self, lora, checkpointing, make_tiny, tokenizer, tmp_path):
        model = make_tiny("llama", lora=lora)  # Llama: what enters the first block is the embedding itself
        table = model.get_input_embeddings().weight.detach().clone()
        trainer = self.trainer(model, tokenizer, tmp_path, gradient_checkpointing=checkpointing)
        inject_gaussian_noise(trainer, {"epsilon": EPSILON, "seed": SEED})
        seen = []
        block = next(m for m in trainer.model.modules() if type(m).__name__ == "LlamaDecoderLayer")
        block.register_forward_pre_hook(
            lambda m, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone()),
            with_kwargs=True,
        )
        trainer.train()
        rows = [row for batch in seen for row in batch]  # (T, d) each; checkpointing runs a block more than once
        assert len(rows) >= 4
        for expected in self.rows:
            ids, noise_id = expected["input_ids"], expected["noise_id"]
            x = table[ids]
            if noise_id >= 0:
                x = x + EPSILON * torch.from_numpy(unit_noise(SEED, noise_id, len(ids), WIDTH))
            mine = [row for row in rows if len(row) >= len(ids) and torch.allclose(row[: len(ids)], x, atol=1e-6)]
            assert mine, f"no row of the batches was {'x + ξ' if noise_id >= 0 else 'x'} of {ids}"
            padding = table[tokenizer.pad_token_id]
            assert all(torch.equal(row[len(ids) :], padding.expand(len(row) - len(ids), -1)) for row in mine)

    @pytest.mark.parametrize("setting", ["packing", "padding_free", "remove_unused_columns"])
    def test_settings_that_would_drop_the_noise_are_refused(self, setting, make_tiny, tokenizer, tmp_path):
        trainer = self.trainer(make_tiny("gpt2"), tokenizer, tmp_path)
        setattr(trainer.args, setting, True)
        with pytest.raises(InputError, match=f"set {setting}=False"):
            inject_gaussian_noise(trainer, {"epsilon": EPSILON, "seed": SEED})

    def test_trls_own_defaults_are_refused(self, make_tiny, tokenizer, tmp_path):
        trainer = self.trainer(make_tiny("gpt2"), tokenizer, tmp_path, remove_unused_columns=True)
        with pytest.raises(InputError, match="remove_unused_columns=True .*remove_unused_columns=False"):
            inject_gaussian_noise(trainer, {"epsilon": EPSILON, "seed": SEED})
