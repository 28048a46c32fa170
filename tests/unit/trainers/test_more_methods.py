"""What the methods of 2024 and later do beyond the contract: each against its formula, computed apart."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from support import NOISE, build, own_weights, rows, trainer
from transformers import TrainerState

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError, NonFiniteLossError
from llm_unlearn.models.text_blocks import block_list
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.pdu import DualStep
from llm_unlearn.training.checkpoints import last_checkpoint

pytestmark = pytest.mark.unit

TASK = CausalLMTask()
kinds = pytest.mark.parametrize("kind", ["full", "lora"])


def noisy(kind: str) -> torch.nn.Module:
    model = build(kind)
    inject_gaussian_noise(model, NOISE)
    return model.eval()


def said(model, items) -> list:
    """What the model says of each row, one by one."""
    return [TASK.supervised(model, CausalLMCollator(0)([row])) for row in items]


def items_of(run, name: str, step: int = 0) -> list[dict]:
    n = run.examples_per_step
    return [run.train_dataset[k][name] for k in range(step * n, (step + 1) * n)]


class TestAnswers:
    TEXT = Dataset.from_list(
        [
            {"prompt": f"film {i} was", "completion": " good", "right_completion": f" bad {i}", "noise_id": i}
            for i in range(4)
        ]
    )
    RETAIN = Dataset.from_list([{"prompt": f"film {i} was", "completion": " dull", "noise_id": -1} for i in range(5)])

    def from_text(self, method, tokenizer, make_tiny, folder, forget=None, **options):
        config, cls = METHODS[method]
        return cls(
            model=make_tiny("gpt2"),
            forget_dataset=self.TEXT if forget is None else forget,
            retain_dataset=self.RETAIN,
            processing_class=tokenizer,
            args=config(output_dir=str(folder), use_cpu=True, report_to="none", max_length=64, max_steps=1, **options),
        )

    def test_idk_sft_learns_refusals_to_the_forget_prompts(self, tokenizer, make_tiny, tmp_path):
        run = self.from_text("idk_sft", tokenizer, make_tiny, tmp_path, refusals=[" unknown"])
        assert set(run.rows) == {"refusal", "retain"}  # no forget answer is seen
        for i, row in enumerate(run.rows["refusal"]):
            learnt = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
            assert tokenizer.decode(learnt).startswith(" unknown")
            assert tokenizer.decode(row["input_ids"]).startswith(f"film {i} was unknown")
            assert row["noise_id"] == i

    def test_osft_learns_the_right_answers_without_noise(self, tokenizer, make_tiny, tmp_path):
        run = self.from_text("osft", tokenizer, make_tiny, tmp_path)
        for i, row in enumerate(run.rows["relabelled"]):
            learnt = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
            assert tokenizer.decode(learnt).startswith(f" bad {i}")
            assert row["noise_id"] == -1

    def test_osft_without_right_answers_is_refused(self, tokenizer, make_tiny, tmp_path):
        with pytest.raises(InputError, match="right_completion"):
            self.from_text("osft", tokenizer, make_tiny, tmp_path, forget=self.TEXT.remove_columns("right_completion"))

    @pytest.mark.parametrize(("method", "name"), [("idk_sft", "refusal"), ("osft", "relabelled")])
    def test_the_loss_is_the_formula(self, method, name, tmp_path):
        run = trainer(method, "full", tmp_path, gamma=0.5, alpha=3.0)
        loss = run.compute_loss(run.model, run._prepare_inputs(next(iter(run.get_train_dataloader()))))
        model = noisy("full")
        answer, retain = (
            sum(float(each.nll()) for each in said(model, items_of(run, part))) / 4 for part in (name, "retain")
        )
        assert float(loss) == pytest.approx(0.5 * answer + 3.0 * retain, rel=1e-5)


class TestPDU:
    def test_the_loss_and_the_dual_step_are_the_formulas(self, tmp_path):
        """λ goes 2 → max(0, 2 + 0.5 (ℓ(r) − 1)); in two micro-batches as in one."""
        run = trainer(
            "pdu",
            "full",
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            multiplier=2.0,
            epsilon=1.0,
            dual_rate=0.5,
            gamma=0.1,
        )
        model = noisy("full")
        forget = [each.logits for each in said(model, items_of(run, "forget"))]
        flatness = sum(float(((z.amax(-1) - z.mean(-1)) ** 2).mean()) for z in forget) / 4
        retain = sum(float(each.nll()) for each in said(model, items_of(run, "retain"))) / 4
        run.train()
        entry = run.state.log_history[0]
        assert entry["loss"] == pytest.approx(0.1 * flatness + 2.0 * (retain - 1.0), rel=1e-4)
        assert run.multiplier == pytest.approx(2.0 + 0.5 * (retain - 1.0), rel=1e-5)
        assert entry["multiplier"] == pytest.approx(run.multiplier)

    def test_the_multiplier_never_falls_below_0(self, tmp_path):
        run = trainer("pdu", "full", tmp_path, max_steps=2, epsilon=100.0)
        run.train()
        assert run.multiplier == 0.0

    def test_a_resumed_run_has_the_multiplier(self, tmp_path):
        whole = trainer("pdu", "full", tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
        whole.train()
        resumed = trainer("pdu", "full", tmp_path, max_steps=4)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert resumed.multiplier == whole.multiplier > 1.0

    def test_a_damaged_state_is_refused_by_name(self, tmp_path):
        trainer("pdu", "full", tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
        checkpoint = tmp_path / "checkpoint-2"
        (checkpoint / "method_state.safetensors").write_bytes(b"x" * 20)
        with pytest.raises(InputError, match=r"method_state\.safetensors"):
            trainer("pdu", "full", tmp_path, max_steps=4).train(resume_from_checkpoint=str(checkpoint))

    def test_a_missing_state_is_refused_and_is_no_weights(self, tmp_path):
        trainer("pdu", "full", tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
        checkpoint = tmp_path / "checkpoint-2"
        state = (checkpoint / "method_state.safetensors").rename(tmp_path / "state")
        with pytest.raises(InputError, match=r"method_state\.safetensors: no such file"):
            trainer("pdu", "full", tmp_path, max_steps=4).train(resume_from_checkpoint=str(checkpoint))
        state.rename(checkpoint / "method_state.safetensors")
        (checkpoint / "model.safetensors").unlink()
        assert last_checkpoint(tmp_path) is None

    def test_a_violation_that_is_not_finite_ends_the_run(self, tmp_path):
        """max(0, NaN) is 0, so that λ would fall to 0 where the loss broke down."""
        run = trainer("pdu", "full", tmp_path, max_steps=1)
        run.components["violation"] = [torch.tensor(math.nan)]
        with pytest.raises(NonFiniteLossError, match="pdu: the retain loss is not finite at step 3"):
            DualStep(run).on_step_end(run.args, TrainerState(global_step=3), None)
        assert run.multiplier == 1.0


@pytest.mark.parametrize("of_forget", [True, False])
def test_gu_project_takes_what_a_loss_does_not_reach_for_0(of_forget, tmp_path):
    """A weight without a retain gradient gets the forget gradient whole; without a forget gradient, none of it."""
    run = trainer("gu_project", "full", tmp_path)
    weights = dict(run.model.named_parameters())
    name = next(iter(weights))
    gradient = torch.randn_like(weights[name])
    if of_forget:
        run.upward = {name: gradient}
    else:
        weights[name].grad = gradient.clone()
    run.project()
    assert torch.equal(weights[name].grad, gradient)
    assert not any(weight.grad.any() for other, weight in weights.items() if other != name)
    assert run.components["kept_share"] == [1.0] and run.upward == {}


@kinds
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_of_gu_project_is_descent_on_retain_and_what_is_left_of_ascent(kind, accumulated, tmp_path):
    """θ − lr (α g_r − γ (g_f − ⟨g_f, g_r⟩/⟨g_r, g_r⟩ g_r)), weight by weight, from gradients of plain autograd."""
    run = trainer(
        "gu_project",
        kind,
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=4 // accumulated,
        gradient_accumulation_steps=accumulated,
        gamma=0.7,
        alpha=2.0,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
    )
    model = noisy(kind)
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = {}
    for name in ("forget", "retain"):
        loss = torch.cat([each.nll() for each in said(model, items_of(run, name))]).mean()
        found = torch.autograd.grad(loss, list(weights.values()))
        gradients[name] = dict(zip(weights, found, strict=True))
    run.train()
    after = own_weights(run.model)
    for name, weight in weights.items():
        f, r = gradients["forget"][name].double(), gradients["retain"][name].double()
        left = f - (f * r).sum() / (r * r).sum() * r
        expected = weight.detach().double() - 0.1 * (2.0 * r - 0.7 * left)
        torch.testing.assert_close(after[name].double(), expected, atol=2e-6, rtol=0, msg=name)
    assert 0 < run.state.log_history[0]["kept_share"] <= 1


class TestCrow:
    @kinds
    def test_the_loss_is_the_formula(self, kind, tmp_path):
        """By hand, row by row, from transformers' own hidden states with the embeddings given."""
        run = trainer("crow", kind, tmp_path, alpha=2.0, epsilon=0.3)
        loss = run.compute_loss(run.model, run._prepare_inputs(next(iter(run.get_train_dataloader()))))
        model, expected = build(kind).eval(), []
        for row in items_of(run, "retain"):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]

            def turned(nudge, ids=ids):
                states = []
                blocks = block_list(model)
                hooks = [blocks[0].register_forward_pre_hook(lambda _, args: (args[0] + nudge, *args[1:]))]
                hooks += [blocks[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))]
                hooks += [
                    block.register_forward_hook(lambda *a: states.append(a[2] if torch.is_tensor(a[2]) else a[2][0]))
                    for block in blocks
                ]
                logits = model(ids).logits
                for hook in hooks:
                    hook.remove()
                kept = [h[0, :-1] for h in states]
                cosines = [torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(kept)]
                return 1 - torch.stack(cosines).mean(), logits

            nudge = torch.zeros(1, ids.shape[1], 16, requires_grad=True)
            clean, logits = turned(nudge)
            (gradient,) = torch.autograd.grad(clean, nudge)
            nll = torch.nn.functional.cross_entropy(logits[0, :-1], labels)
            expected.append(float(nll + 2.0 * turned(0.3 * gradient.sign())[0]))
        assert float(loss) == pytest.approx(sum(expected) / 4, rel=1e-5)

    def test_it_sees_no_forget_row_and_trains_nothing_of_the_nudge(self, tmp_path):
        run = trainer("crow", "full", tmp_path, forget=None, max_steps=1)
        before = copy.deepcopy(own_weights(run.model))
        run.train()
        assert any(not torch.equal(p, before[n]) for n, p in own_weights(run.model).items())
        assert not any(module._forward_pre_hooks for module in run.model.transformer.h)

    def test_checkpointed_blocks_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="gradient_checkpointing: crow"):
            METHODS["crow"][0](output_dir=str(tmp_path), use_cpu=True, gradient_checkpointing=True)


class TestAltPO:
    @staticmethod
    def run(folder, forget=None, **options):
        config, cls = METHODS["altpo"]
        options = {"use_cpu": True, "report_to": "none", "max_steps": 1, "seed": 3, "disable_tqdm": True, **options}

        def answered(row: dict) -> dict:
            prompt = len(row["input_ids"]) - 2
            return {"labels": [-100] * prompt + row["input_ids"][prompt:]}

        return cls(
            model=build("full"),
            args=config(output_dir=str(folder), **options),
            forget_dataset=rows(6, 1).map(answered) if forget is None else forget,
            retain_dataset=rows(5, 2),
            data_collator=CausalLMCollator(0),
        )

    def test_alternatives_answer_the_same_prompts_otherwise(self, tmp_path):
        run = self.run(tmp_path)
        for forget, other in zip(run.rows["forget"], run.rows["alternate"], strict=True):
            start = len(forget["input_ids"]) - 2
            assert other["input_ids"][:start] == forget["input_ids"][:start]
            assert other["labels"] == [-100] * start + other["input_ids"][start:]
            assert 1 <= len(other["input_ids"]) - start <= 2
            assert other["input_ids"][start] not in forget["input_ids"][start:]

    def test_rows_of_text_that_a_run_has_tokenised_for_loss_on_text(self, tokenizer, make_tiny, tmp_path):
        encoded = TestAnswers.TEXT.map(lambda row: {"input_ids": [3, 4], "labels": [3, 4], "noise_id": -1})
        run = TestAnswers().from_text("altpo", tokenizer, make_tiny, tmp_path, forget=encoded)
        for i, (forget, other) in enumerate(zip(run.rows["forget"], run.rows["alternate"], strict=True)):
            start = forget["labels"].count(-100)
            assert tokenizer.decode(other["input_ids"][:start]) == f"film {i} was"
            assert other["noise_id"] == -1 and other["input_ids"] != forget["input_ids"]

    def test_a_missing_forget_set_is_named(self, tmp_path):
        config, cls = METHODS["altpo"]
        with pytest.raises(InputError, match="altpo needs forget_dataset, which is missing"):
            cls(model=build("full"), args=config(output_dir=str(tmp_path), use_cpu=True), retain_dataset=rows(5, 2))

    def test_a_row_without_a_prompt_is_refused(self, tmp_path):
        row = {"input_ids": [5, 6], "labels": [5, 6], "noise_id": -1}
        with pytest.raises(InputError, match="row 0: altpo"):
            self.run(tmp_path, forget=Dataset.from_list([row]))

    def test_the_seed_draws_them_and_the_budget_pays_for_them(self, tmp_path):
        ones, same, others = (self.run(tmp_path, seed=seed).rows["alternate"]["input_ids"] for seed in (0, 0, 1))
        assert ones == same != others
        run = self.run(tmp_path)
        given = sum(map(len, run.rows["forget"]["input_ids"])) - 12  # of prompts alone, shown for the first token
        assert run.sampled[0] > given
        counter = run.task.flop_counter(run.model)
        log_probs = sum(
            counter.forward(*(int(c.sum()) for c in run.task.sizes(run.rows[name])))
            for name in run.requires.log_probs_on
        )
        assert run.plan.setup == counter.forward(*run.sampled) + log_probs

    def test_they_follow_the_model_at_its_temperature(self, tmp_path):
        """At temperature 0.001 each is the model's likeliest answer among those that are not barred."""
        run, model = self.run(tmp_path, temperature=1e-3), build("full").eval()
        for forget, other in zip(run.rows["forget"], run.rows["alternate"], strict=True):
            start = len(forget["input_ids"]) - 2
            logits = model(torch.tensor([forget["input_ids"][:start]])).logits[0, -1]
            logits[forget["input_ids"][start:]] = -torch.inf
            assert other["input_ids"][start] == int(logits.argmax())

    def test_the_loss_starts_at_log_2_and_the_retain_term(self, tmp_path):
        run = trainer("altpo", "full", tmp_path, max_steps=1, alpha=2.0)
        run.train()
        entry = run.state.log_history[0]
        assert entry["loss"] == pytest.approx(math.log(2) + 2.0 * entry["retain_loss"], abs=1e-4)
