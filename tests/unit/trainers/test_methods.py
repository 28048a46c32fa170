"""What single methods do beyond the contract that all keep: each against its formula, computed apart."""

import copy
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from support import NOISE, assert_same, build, own_weights, rows, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import attached_noise
from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.unit

TASK = CausalLMTask()
kinds = pytest.mark.parametrize("kind", ["full", "lora"])


def noisy(kind: str, seed: int = 0) -> torch.nn.Module:
    model = build(kind, seed)
    inject_gaussian_noise(model, NOISE)
    return model


def nll(model, items) -> torch.Tensor:
    """Mean NLL of each row, one by one."""
    return torch.cat([TASK.supervised(model, CausalLMCollator(0)([row])).nll() for row in items])


class TestNoisyGradientDescent:
    def test_a_step_adds_lr_sigma_noise_to_plain_sgd(self, tmp_path):
        """θ_noisy − θ_plain = −lr σ z after one step: z has mean 0 and variance 1 over all coordinates."""
        runs = [
            trainer("noisy_gradient_descent", "full", tmp_path, max_steps=1, learning_rate=0.1, sigma=sigma)
            for sigma in (0.0, 0.2)
        ]
        for run in runs:
            run.train()
        plain, noisy_one = (own_weights(run.model) for run in runs)
        z = torch.cat([(noisy_one[n] - plain[n]).flatten() for n in plain]) / (-0.1 * 0.2)
        assert abs(z.mean()) < 4 / math.sqrt(z.numel())
        assert z.std().item() == pytest.approx(1, abs=0.05)

    def test_each_step_has_noise_of_its_own_and_the_seed_decides(self, tmp_path):
        def moves(seed: int, steps: int) -> torch.Tensor:
            run = trainer(
                "noisy_gradient_descent",
                "full",
                tmp_path,
                max_steps=steps,
                seed=seed,
                max_grad_norm=1e-12,
                sigma=1.0,
                learning_rate=1.0,
            )  # all but the noise is clipped away
            before = own_weights(run.model)
            run.train()
            return torch.cat([(p - before[n]).flatten() for n, p in own_weights(run.model).items()])

        one, two, other = moves(0, 1), moves(0, 2), moves(1, 1)
        assert torch.equal(one, moves(0, 1))
        correlation = torch.corrcoef(torch.stack([one, two - one, other]))
        assert (correlation - torch.eye(3)).abs().max() < 0.1

    def test_an_adaptive_optimizer_is_warned_of_and_a_negative_sigma_refused(self, tmp_path):
        config = METHODS["noisy_gradient_descent"][0]
        with pytest.warns(UserWarning, match="rescales the noise"):
            config(output_dir=str(tmp_path), optim="adamw_torch", use_cpu=True)
        with pytest.raises(InputError, match="sigma"):
            config(output_dir=str(tmp_path), sigma=-1.0, use_cpu=True)


class TestLastBlocks:
    @kinds
    @pytest.mark.parametrize("method", ["eu_k", "cf_k"])
    def test_only_the_last_block_and_the_norm_train(self, method, kind, tmp_path):
        run = trainer(method, kind, tmp_path, k=1)
        trained = {n for n, p in run.model.named_parameters() if p.requires_grad}
        assert trained and all(".h.1." in n or ".ln_f." in n for n in trained)
        assert any(".ln_f." in n for n in trained) == (kind == "full")

    @kinds
    def test_eu_k_draws_them_anew_and_cf_k_does_not(self, kind, tmp_path):
        original = own_weights(build(kind))
        for method in ("eu_k", "cf_k"):
            run = trainer(method, kind, tmp_path, k=1)
            changed = {n for n, p in own_weights(run.model).items() if not torch.equal(p, original[n])}
            assert bool(changed) == (method == "eu_k")
            assert all(".h.1." in n or ".ln_f." in n for n in changed)

    def test_an_adapter_without_weights_there_is_refused(self, tmp_path):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            build("full"),
            LoraConfig(
                r=2, target_modules=["c_attn"], layers_to_transform=[0], layers_pattern="h", task_type="CAUSAL_LM"
            ),
        )
        with pytest.raises(InputError, match=r"nothing trains.*last 1\b"):
            trainer("cf_k", "lora", tmp_path, model=model)


class TestSSD:
    @kinds
    def test_the_fisher_diagonal_is_the_mean_of_squared_per_example_gradients(self, kind, tmp_path):
        run = trainer("ssd", kind, tmp_path, max_steps=-1)
        found = run.fisher("forget")
        model = noisy(kind).eval()
        weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        expected = {n: torch.zeros_like(p) for n, p in weights.items()}
        for row in rows(6, 1, noisy=True):
            gradients = torch.autograd.grad(nll(model, [row]).sum(), list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                expected[name] += gradient**2 / 6
        assert_same(found, expected, atol=1e-6)

    def test_weights_are_dampened_by_the_formula(self, tmp_path):
        run = trainer("ssd", "full", tmp_path, max_steps=-1, alpha=1.3, lam=0.8)
        before = own_weights(run.model)
        forget, retain = run.fisher("forget"), run.fisher("retain")
        run.train()
        after, touched = own_weights(run.model), 0
        for name, weight in before.items():
            everything = (6 * forget[name] + 10 * retain[name]) / 16
            for i in np.ndindex(*weight.shape):
                f, a, w = forget[name][i].item(), everything[i].item(), weight[i].item()
                selected = f > 1.3 * a
                touched += selected and w != 0
                assert after[name][i].item() == pytest.approx(w * min(0.8 * a / f, 1) if selected else w, rel=1e-4)
        assert 0 < touched < sum(p.numel() for p in before.values())
        assert run.state.log_history[-1]["dampened_share"] == pytest.approx(
            touched / sum(p.numel() for p in before.values())
        )

    def test_an_alpha_that_can_dampen_nothing_is_refused(self, tmp_path):
        """F_all ≥ 6/16 F_f, so F_f > α F_all needs α < 16/6 = 2.67."""
        with pytest.raises(InputError, match=r"alpha: 10 .*38%.*2\.67"):
            trainer("ssd", "full", tmp_path, alpha=10.0)

    def test_a_budget_for_one_set_alone_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="one step on each set"):
            trainer("ssd", "full", tmp_path, max_steps=1)


class TestRetainTerm:
    @pytest.mark.parametrize(
        ("retain_loss", "sets", "reference_on"),
        [("none", ("forget",), ()), ("nll", ("forget", "retain"), ()), ("kl", ("forget", "retain"), ("retain",))],
    )
    def test_npo_alone_with_gd_and_with_kl_are_one_class(self, retain_loss, sets, reference_on, tmp_path):
        run = trainer("npo", "full", tmp_path, retain_loss=retain_loss, max_steps=1, gamma=0.5, alpha=3.0)
        assert (run.requires.sets, run.requires.reference_on) == (sets, reference_on)
        run.train()
        forget = run.state.log_history[0]["forget_loss"]
        assert forget > 0
        # at θ0 the forget term is (2/β) log 2 and the KL 0
        expected = 0.5 * (2 / 0.1) * math.log(2)
        if retain_loss == "nll":
            expected += 3.0 * run.state.log_history[0]["retain_loss"]
        assert run.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-4)

    def test_another_name_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"retain_loss: .*none, nll, kl.*'KL'"):
            METHODS["wga"][0](output_dir=str(tmp_path), retain_loss="KL", use_cpu=True)

    def test_undial_with_kl_asks_the_reference_on_both_sets(self, tmp_path):
        run = trainer("undial", "full", tmp_path, retain_loss="kl", max_steps=2)
        assert run.requires.reference_on == ("forget", "retain")
        run.train()


class TestDPO:
    TEXT = Dataset.from_list([{"prompt": f"film {i} was", "completion": " good", "noise_id": -1} for i in range(4)])

    def from_text(self, tokenizer, make_tiny, folder, forget=None, **options):
        config, cls = METHODS["dpo"]
        return cls(
            model=make_tiny("gpt2"),
            forget_dataset=self.TEXT if forget is None else forget,
            processing_class=tokenizer,
            args=config(output_dir=str(folder), use_cpu=True, report_to="none", max_length=64, max_steps=1, **options),
        )

    def test_refusals_are_made_from_the_prompts(self, tokenizer, make_tiny, tmp_path):
        run = self.from_text(tokenizer, make_tiny, tmp_path, refusals=[" unknown"])
        for answer, refusal in zip(run.rows["forget"], run.rows["refusal"], strict=True):
            said = [
                [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
                for row in (answer, refusal)
            ]
            assert tokenizer.decode(said[0]).startswith(" good") and tokenizer.decode(said[1]).startswith(" unknown")
            prompts = [row["input_ids"][: row["labels"].count(-100)] for row in (answer, refusal)]
            assert prompts[0] == prompts[1]

    def test_rows_that_are_tokenised_already_are_answered_too_where_their_text_is_there(
        self, tokenizer, make_tiny, tmp_path
    ):
        encoded = self.TEXT.map(lambda row: {"input_ids": [3, 4], "labels": [3, 4]})
        run = self.from_text(tokenizer, make_tiny, tmp_path, forget=encoded)
        assert all(len(row["input_ids"]) > 2 and row["noise_id"] == -1 for row in run.rows["forget"])

    def test_several_refusals_are_drawn_by_the_seed(self, tokenizer, make_tiny, tmp_path):
        many = self.TEXT.select([0, 1, 2, 3] * 10)
        drawn = [
            [
                tuple(row["input_ids"])
                for row in self.from_text(
                    tokenizer, make_tiny, tmp_path, forget=many, refusals=[" a", " b"], seed=seed
                ).rows["refusal"]
            ]
            for seed in (0, 0, 1)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        assert len(set(drawn[0])) == 8  # both refusals to each of four prompts

    def test_the_loss_starts_at_log_2(self, tmp_path):
        run = trainer("dpo", "full", tmp_path, max_steps=1)
        run.train()
        assert run.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)

    def test_what_gives_no_refusals_is_refused(self, tmp_path):
        config, cls = METHODS["dpo"]
        options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
        with pytest.raises(InputError, match=r"refusals: .*at least one"):
            config(**options, refusals=[])
        with pytest.raises(InputError, match="columns prompt and completion"):
            cls(
                model=build("full"),
                args=config(**options),
                forget_dataset=rows(4, 0),
                data_collator=CausalLMCollator(0),
            )
        with pytest.raises(InputError, match="has 3 rows, forget_dataset 4"):
            cls(
                model=build("full"),
                args=config(**options),
                forget_dataset=rows(4, 0),
                refusal_dataset=rows(3, 1),
                data_collator=CausalLMCollator(0),
            )


class TestRMU:
    @pytest.mark.parametrize(("layers", "layer"), [(2, 0), (4, 1), (32, 7)])
    def test_the_default_layer_is_the_papers_in_proportion(self, layers, layer, tmp_path):
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_layer=layers, n_head=1, n_embd=4, n_positions=32))
        assert trainer("rmu", "full", tmp_path, model=model).layer == layer

    def test_only_the_mlp_outputs_of_three_blocks_train(self, tmp_path):
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_layer=6, n_head=1, n_embd=4, n_positions=32))
        run = trainer("rmu", "full", tmp_path, model=model, layer=4)
        trained = [n for n, p in run.model.named_parameters() if p.requires_grad]
        assert trained == [f"transformer.h.{i}.mlp.c_proj.weight" for i in (2, 3, 4)]

    def test_the_loss_is_the_formula(self, tmp_path):
        """The reference is the model itself at the first step, so only the forget term is left."""
        run = trainer("rmu", "full", tmp_path, max_steps=1, layer=0, steering=2.0, alpha=5.0)
        assert run.target.norm().item() == pytest.approx(2.0, rel=1e-5)
        assert (run.target >= 0).all()
        model, chosen = noisy("full").eval(), [run.train_dataset[k]["forget"] for k in range(4)]
        expected = []
        for row in chosen:
            states = TASK.hidden(model, CausalLMCollator(0)([row]), 0).states
            expected.append(float(((states - run.target) ** 2).mean()))
        run.train()
        entry = run.state.log_history[0]
        assert entry["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
        assert entry["retain_distance"] == pytest.approx(0, abs=1e-9)

    def test_a_layer_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"layer: .*\b0 and 1\b.* 2$"):
            trainer("rmu", "full", tmp_path, layer=2)


@kinds
def test_task_arithmetic_goes_as_far_the_other_way(kind, tmp_path):
    """Fine-tuning on forget is gradient descent with the forget set in the retain set's place."""
    run = trainer("task_arithmetic", kind, tmp_path / "a", alpha=0.5, max_steps=5, optim="sgd", learning_rate=0.05)
    start = own_weights(run.model)
    fine_tuned = copy.deepcopy(run.model)
    run.train()
    optimizer = torch.optim.SGD([p for p in fine_tuned.parameters() if p.requires_grad], lr=0.05)
    for step in range(5):
        items = [run.train_dataset[k]["forget"] for k in range(4 * step, 4 * step + 4)]
        loss = TASK.supervised(fine_tuned, CausalLMCollator(0)(items)).nll().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(fine_tuned.parameters(), 1.0)
        optimizer.step()
    expected = {n: start[n] - 0.5 * (p - start[n]) for n, p in own_weights(fine_tuned).items()}
    assert_same(own_weights(run.model), expected, atol=1e-5)


class TestCleanStart:
    def test_rewind_is_training_of_the_start_model_on_retain(self, tmp_path):
        """By construction it is gradient_descent from there: nothing of the poisoned model goes in."""
        rewound = trainer("rewind", "full", tmp_path / "a", start=build("full", seed=1))
        rewound.train()
        plain = trainer("gradient_descent", "full", tmp_path / "b", model=build("full", seed=1))
        plain.train()
        assert_same(own_weights(rewound.model), own_weights(plain.model))

    def test_the_result_does_not_depend_on_the_poisoned_adapter(self, tmp_path):
        results = []
        for scale in (1.0, 5.0):
            model = build("lora")
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_" in name:
                        parameter.mul_(scale)
            run = trainer("rewind", "lora", tmp_path, model=model)
            run.train()
            results.append(own_weights(run.model))
        assert_same(*results)

    @kinds
    def test_rewind_may_start_at_an_early_checkpoint(self, kind, tmp_path):
        """Under LoRA that is a model with an adapter; what was given as the poisoned one goes in nowhere."""
        rewound = trainer("rewind", kind, tmp_path / "a", start=build(kind, seed=1), from_step=3)
        rewound.train()
        plain = trainer("gradient_descent", kind, tmp_path / "b", model=build(kind, seed=1))
        plain.train()
        assert_same(own_weights(rewound.model), own_weights(plain.model))

    def test_a_step_without_its_checkpoint_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="from_step: give start_model"):
            trainer("rewind", "lora", tmp_path, from_step=3)

    def test_rewind_may_keep_a_share_of_the_fine_tuning(self, tmp_path):
        """A rate of 0 shows the start: 3/4 of the clean weights and 1/4 of the poisoned ones."""
        start, poisoned = build("full", seed=1), build("full", seed=0)
        expected = {n: 0.75 * p + 0.25 * own_weights(poisoned)[n] for n, p in own_weights(start).items()}
        run = trainer("rewind", "full", tmp_path, model=poisoned, start=start, keep=0.25, learning_rate=0.0)
        run.train()
        assert_same(own_weights(run.model), expected, atol=1e-6)

    def test_a_share_is_not_kept_of_an_adapter_or_of_another_model(self, tmp_path):
        with pytest.raises(InputError, match="keep: takes full models"):
            trainer("rewind", "lora", tmp_path, keep=0.5)
        other = build("full", seed=1)
        other.transformer.h = other.transformer.h[:1]
        with pytest.raises(InputError, match="keep: start_model has other weights"):
            trainer("rewind", "full", tmp_path, start=other, keep=0.5)

    @kinds
    def test_the_teacher_of_reset_distill_is_the_poisoned_model(self, kind, tmp_path):
        run = trainer("reset_distill", kind, tmp_path, max_steps=3)
        batch = CausalLMCollator(0)(list(rows(3, 7)))
        run.train()
        with torch.no_grad(), run.reference.as_model(run.model) as teacher:
            taught = TASK.supervised(teacher, batch).logits
        with torch.no_grad():
            torch.testing.assert_close(taught, TASK.supervised(noisy(kind).eval(), batch).logits)
            assert not torch.allclose(taught, TASK.supervised(run.model, batch).logits)

    def test_the_noise_of_canaries_that_stay_is_carried_over(self, tmp_path):
        run = trainer("rewind", "full", tmp_path)
        noise = attached_noise(run.model)
        assert (noise.epsilon, noise.seed) == (NOISE["epsilon"], NOISE["seed"])

    def test_a_start_that_is_missing_or_cannot_be_reset_is_refused(self, tmp_path):
        from peft import LoraConfig, get_peft_model

        config, cls = METHODS["rewind"]
        options = {
            "args": config(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            "retain_dataset": rows(4, 0),
            "data_collator": CausalLMCollator(0),
        }
        with pytest.raises(InputError, match="rewind: give start_model"):
            cls(model=build("full"), **options)
        with pytest.raises(InputError, match="no start_model.*adapter"):
            cls(model=build("lora"), start_model=build("full"), **options)
        partly = get_peft_model(
            build("full"), LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["ln_f"], task_type="CAUSAL_LM")
        )
        with pytest.raises(InputError, match=r"ln_f\S* .*low-rank matrices"):
            cls(model=partly, **options)


REFUSED = [
    (method, name) for method, (config, _) in METHODS.items() for name in config.refuses if name != "peft_config"
]
VALUES = {
    "fp16": True,
    "fsdp": True,
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "utility_floor": 0.0,
    "forget_loss_ceiling": 3.0,
    "load_best_model_at_end": True,
    "completion_weight": 1.0,
    "gradient_checkpointing": True,
    "compile_blocks": True,
    "offload_reference": True,
}


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_settings_that_a_method_cannot_keep_are_refused(method, name, tmp_path, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)  # which asks for a GPU, for deepspeed
    options = {"eval_strategy": "steps", "eval_steps": 1} if name == "utility_floor" else {}
    if name == "ddp":
        monkeypatch.setenv("WORLD_SIZE", "2")
    else:
        options[name] = VALUES[name]
    with pytest.raises(InputError, match=f"{name}: .*; leave it out"):
        METHODS[method][0](output_dir=str(tmp_path), **options)


def test_there_are_such_settings():
    few = {"noisy_gradient_descent", "ssd", "rmu", "task_arithmetic", "gu_project", "crow"}
    few |= {"undo", "sink", "kfac_step"}
    assert few == {method for method, _ in REFUSED}


def test_a_weight_out_of_range_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"beta: .*\[0, 1\].*1\.5"):
        METHODS["neggrad_plus"][0](output_dir=str(tmp_path), use_cpu=True, beta=1.5)
