"""Methods of several phases (undo, sink, kfac_step): each phase against its formula, computed apart."""

import math

import pytest
import torch
from support import NOISE, assert_same, build, own_weights, trainer
from torch import nn
from torch.nn import functional as F

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.causal_lm import CausalLMTask

pytestmark = pytest.mark.unit

TASK = CausalLMTask()
kinds = pytest.mark.parametrize("kind", ["full", "lora"])


def noisy(kind: str) -> nn.Module:
    model = build(kind)
    inject_gaussian_noise(model, NOISE)
    return model


def items_of(run, name: str, step: int = 0) -> list[dict]:
    n = run.examples_per_step
    return [run.train_dataset[k][name] for k in range(step * n, (step + 1) * n)]


def nll(model, items) -> torch.Tensor:
    return torch.cat([TASK.supervised(model, CausalLMCollator(0)([row])).nll() for row in items]).mean()


@torch.no_grad()
def kl(first, second, items) -> float:
    """Mean KL(first ‖ second) over the supervised positions of rows."""
    values = []
    for row in items:
        p, q = (TASK.supervised(m.eval(), CausalLMCollator(0)([row])).logits for m in (first, second))
        pair = F.log_softmax(q, -1), F.log_softmax(p, -1)
        values.append(F.kl_div(*pair, log_target=True, reduction="none").sum(-1))
    return float(torch.cat(values).mean())


@pytest.mark.parametrize("method", ["undo", "sink", "kfac_step"])
def test_a_run_without_a_last_phase_is_refused(method, tmp_path):
    with pytest.raises(InputError, match=f"{method}: of 1 steps none is of its last phase"):
        trainer(method, "full", tmp_path, max_steps=1)


@pytest.mark.parametrize(("method", "share"), [("undo", "unlearn"), ("sink", "removal"), ("kfac_step", "uphill")])
def test_phases_are_shares_of_the_budget_in_flops(method, share, tmp_path):
    whole = trainer(method, "full", tmp_path, max_steps=8, **{f"{share}_share": 0.5})
    first = whole.plan.schedule[0]
    budget = 40 * max(cost for cost, _ in whole.plan.costs)
    plan = trainer(method, "full", tmp_path, max_steps=-1, max_flops=budget, **{f"{share}_share": 0.25}).plan
    n = plan.schedule.count(first)
    assert plan.schedule == [first] * n + [plan.schedule[-1]] * (len(plan.schedule) - n) and n < len(plan.schedule)
    spent = plan.setup + sum(cost for cost, _ in plan.costs[: n - 1])
    assert spent < 0.25 * budget <= spent + plan.costs[n - 1][0]


class TestUndo:
    @staticmethod
    def run(kind, folder, **options):
        given = {"max_steps": 2, "unlearn_share": 0.5, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        return trainer("undo", kind, folder, **{**given, **options})

    @kinds
    def test_both_steps_and_the_noise_between_them_are_the_formulas(self, kind, tmp_path):
        """By plain autograd: −ℓ(f) + γ KL(θ0) at rate 0.1 · 0.2; (1 − α) θ + α β N; KL(unlearned ‖ θ) at rate 0.1."""
        run = self.run(kind, tmp_path, unlearn_rate=0.2, gamma=2.0, alpha=0.4, beta=0.5, temperature=2.0)
        model, old, generator = noisy(kind), noisy(kind), torch.Generator().manual_seed(0)
        weights = {n: p for n, p in model.named_parameters() if p.requires_grad}

        def distillation(teacher, items, temperature):
            values = []
            for row in items:
                p, q = (TASK.supervised(m, CausalLMCollator(0)([row])).logits / temperature for m in (teacher, model))
                pairs = F.log_softmax(q, -1), F.log_softmax(p.detach(), -1)
                values.append(temperature**2 * F.kl_div(*pairs, log_target=True, reduction="none").sum(-1).mean())
            return torch.stack(values).mean()

        def descend(loss, rate):
            gradients = torch.autograd.grad(loss, list(weights.values()))
            with torch.no_grad():
                for weight, gradient in zip(weights.values(), gradients, strict=True):
                    weight.sub_(rate * gradient)

        # a KL to itself has no gradient, so that the first step is of the ascent alone
        descend(2.0 * distillation(old, items_of(run, "retain"), 1.0) - nll(model, items_of(run, "forget")), 0.02)
        old.load_state_dict(model.state_dict())
        with torch.no_grad():
            for weight in weights.values():
                noise = torch.zeros(weight.shape)
                if weight.ndim == 2:
                    noise = nn.init.xavier_uniform_(noise, generator=generator)
                weight.copy_(0.6 * weight + 0.2 * noise)
        descend(distillation(old, items_of(run, "retain", 1), 2.0), 0.1)
        run.train()
        after = own_weights(run.model)
        for name, weight in weights.items():
            torch.testing.assert_close(after[name], weight.detach(), atol=5e-6, rtol=0, msg=name)
        for name, weight in run.reference.weights().items():
            if name in weights:
                torch.testing.assert_close(weight, dict(old.named_parameters())[name], atol=5e-6, rtol=0, msg=name)

    def test_noise_clears_what_the_optimizer_remembers(self, tmp_path):
        run = self.run("full", tmp_path, optim="adamw_torch", max_steps=4)
        run.train()
        assert {int(state["step"]) for state in run.optimizer.state.values()} == {2}

    def test_the_reference_is_θ0_until_then(self, tmp_path):
        run = self.run("full", tmp_path, max_steps=4, unlearn_share=0.5, save_strategy="steps", save_steps=1)
        start = own_weights(run.model)
        assert_same(start, {n: run.reference.weights()[n].detach() for n in start})
        run.train()
        states = [(tmp_path / f"checkpoint-{i}" / "method_state.safetensors").is_file() for i in (1, 2, 3)]
        assert states == [False, False, True]  # a teacher is kept once there is one


class TestSink:
    @staticmethod
    def run(kind, folder, **options):
        given = {"max_steps": 4, "removal_share": 0.25, "rank": 3, "learning_rate": 1e-2}
        return trainer("sink", kind, folder, **{**given, **options})

    @kinds
    def test_spare_weights_learn_and_leave_nothing_behind(self, kind, tmp_path):
        """The model has no weight, hook or answer of theirs; with them on it says something else."""
        run = self.run(kind, tmp_path)
        names = set(run.model.state_dict())
        run.train()
        assert set(run.model.state_dict()) == names
        assert all(float(w.detach().abs().max()) > 0 for w in run.spare.weights.values())
        own = build(kind, seed=1)
        own.load_state_dict(run.model.state_dict())
        ids = torch.tensor([[3, 5, 7, 9]])
        with torch.no_grad():
            without, alone = run.model.eval()(input_ids=ids).logits, own.eval()(input_ids=ids).logits
            with run.spare.active():
                spare = run.model(input_ids=ids).logits
            torch.testing.assert_close(without, alone)
            torch.testing.assert_close(run.model(input_ids=ids).logits, without)
        assert float((spare - without).abs().max()) > 1e-3

    def test_they_are_a_low_rank_product_on_each_linear_layer(self, tmp_path):
        """The same as weights W + (B A)ᵀ, which GPT-2 keeps transposed; LoRA's own matrices have none."""
        run = self.run("full", tmp_path)
        run.train()
        ids = torch.tensor([[3, 5, 7, 9]])
        assert len(run.layers) == 8 == len(self.run("lora", tmp_path).layers)
        with torch.no_grad():
            with run.spare.active():
                active = run.model.eval()(input_ids=ids).logits
            for layer in run.layers:
                product = run.spare.weights[f"{layer.name}.second"] @ run.spare.weights[f"{layer.name}.first"]
                layer.module.weight.add_(product.T)
            torch.testing.assert_close(run.model(input_ids=ids).logits, active, atol=1e-5, rtol=1e-5)

    def test_the_first_phase_is_npo_and_the_second_both_losses(self, tmp_path):
        run = self.run("full", tmp_path, gamma=0.5, alpha=2.0, learning_rate=0.0)
        run.train()
        model, log = noisy("full"), run.state.log_history
        assert log[0]["loss"] == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)  # NPO of θ0 itself
        expected = 0.5 * nll(model, items_of(run, "forget", 1)) + 2.0 * nll(model, items_of(run, "retain", 1))
        assert log[1]["loss"] == pytest.approx(float(expected), rel=1e-5)  # B is 0 at first, and stays so at this rate

    def test_their_flops_are_counted_where_they_are_active(self, tmp_path):
        run = self.run("full", tmp_path)
        counter = run.task.flop_counter(run.model)
        only, both = (run.flops(counter, "forget", 10, 9, sets) for sets in (("forget",), ("forget", "retain")))
        assert only == counter.training(10, 9)
        sizes = 2 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))
        assert both == only + 6 * 3 * sizes * 10
        assert run.flops(counter, "retain", 10, 9, ("forget", "retain")) == only

    def test_they_learn_at_their_own_rate(self, tmp_path):
        run = self.run("full", tmp_path, spare_rate=7.0)
        run.train()
        assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([1e-2, 1e-2, 7e-2])


class TestKFACStep:
    @staticmethod
    def run(kind, folder, **options):
        given = {"max_steps": 2, "uphill_share": 0.5, "step_kl": 0.02, "learning_rate": 0.0}
        return trainer("kfac_step", kind, folder, **{**given, **options})

    @kinds
    @pytest.mark.parametrize("accumulated", [1, 2])
    def test_a_step_uphill_is_an_explicit_solve_with_the_kronecker_product(self, kind, accumulated, tmp_path):
        """Row by row, layer by layer: (Â ⊗ Ĝ)⁻¹ vec D by torch.linalg.solve of the whole matrix, factors from a hook's
        inputs and the gradients of what a layer gives."""
        sizes = {"per_device_train_batch_size": 4 // accumulated, "gradient_accumulation_steps": accumulated}
        run = self.run(kind, tmp_path, damping=0.3, **sizes)
        model, expected, reach = noisy(kind), {}, 0.0
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        names = [layer.name for layer in run.layers]
        assert all(".h." in name for name in names) and len(names) == 8  # four layers; two adapters of two matrices
        ascent = torch.autograd.grad(nll(model, items_of(run, "forget")), list(trained.values()))
        up = dict(zip(trained, ascent, strict=True))
        given, g, positions = {n: [] for n in names}, {n: [] for n in names}, 0
        outputs: list = []

        def note(name):
            return lambda _, args, out: outputs.append((name, args[0], out))

        for name in names:
            model.get_submodule(name).register_forward_hook(note(name))
        for row in items_of(run, "retain"):
            outputs.clear()
            said = TASK.supervised(model, CausalLMCollator(0)([row]))
            gradients = torch.autograd.grad(said.token_nll.sum(), [out for *_, out in outputs])
            positions += len(said.labels)
            for (name, a, _), gradient in zip(outputs, gradients, strict=True):
                kept = (gradient[0] != 0).any(-1)
                given[name].append(a[0][kept].detach().double())
                g[name].append(gradient[0][kept].double())
        for name in names:
            a, out = torch.cat(given[name]), torch.cat(g[name])
            d = up[f"{name}.weight"].double()
            d = d.T if kind == "full" else d  # GPT-2's Conv1D
            if f"{name}.bias" in up:
                a, d = torch.cat([a, torch.ones(len(a), 1)], 1), torch.cat([d, up[f"{name}.bias"].double()[:, None]], 1)
            factors = (out.T @ out / positions, a.T @ a / len(a))
            hats = [f + 0.3 * f.diagonal().mean() * torch.eye(len(f)) for f in factors]
            delta = torch.linalg.solve(torch.kron(*hats), d.flatten()).view_as(d)  # row-major: (G ⊗ A) vec D
            expected[name], reach = delta, reach + float((delta * d).sum())
        length = math.sqrt(2 * 0.02 / reach)
        run.train()
        after = own_weights(run.model)
        for name, delta in expected.items():
            moved = length * delta[:, : delta.shape[1] - (f"{name}.bias" in up)]
            start = trained[f"{name}.weight"].detach()
            ours = after[f"{name}.weight"] - start
            torch.testing.assert_close((ours.T if kind == "full" else ours).double(), moved, atol=2e-6, rtol=1e-3)
            if f"{name}.bias" in up:
                moved = trained[f"{name}.bias"].detach() + length * delta[:, -1]
                torch.testing.assert_close(after[f"{name}.bias"].double(), moved, atol=2e-6, rtol=1e-3)
        still = [n for n in trained if not n.startswith(tuple(f"{name}." for name in names))]
        assert all(torch.equal(after[n], trained[n].detach()) for n in still)

    def test_the_kl_on_retain_is_about_what_the_step_is_given(self, tmp_path):
        """The curvature foretells it of a model that has learnt its rows; of one that has not, to a factor of 10."""
        run = self.run("full", tmp_path, step_kl=1e-3, per_device_train_batch_size=10)
        run.train()
        assert 1e-4 < kl(noisy("full"), run.model, items_of(run, "retain")) < 1e-2

    def test_it_changes_less_of_retain_than_plain_ascent_that_forgets_as_much(self, tmp_path):
        run = self.run("full", tmp_path, step_kl=1e-2, per_device_train_batch_size=6)
        run.train()
        start, plain = noisy("full"), noisy("full")
        forget, retain = items_of(run, "forget"), items_of(run, "retain")
        weights = list(plain.parameters())
        gradients = torch.autograd.grad(nll(plain, forget), weights)
        rose, low, high = float(nll(run.model, forget) - nll(start, forget)), 0.0, 10.0
        assert rose > 0.05
        for _ in range(20):  # until plain ascent raises ℓ(f) as much
            rate = (low + high) / 2
            with torch.no_grad():
                for weight, first, gradient in zip(weights, start.parameters(), gradients, strict=True):
                    weight.copy_(first + rate * gradient)
                enough = float(nll(plain, forget) - nll(start, forget)) > rose
            low, high = (low, rate) if enough else (rate, high)
        assert kl(start, run.model, retain) < kl(start, plain, retain)

    def test_factors_are_averaged_over_the_steps_uphill_and_given_up_after(self, tmp_path):
        run = self.run("full", tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
        run.train()
        kept = [(tmp_path / f"checkpoint-{i}" / "method_state.safetensors").is_file() for i in (2, 4, 6)]
        assert kept == [True, False, False] and run.sums == {}

    def test_flops_by_hand(self, tmp_path):
        run = self.run("full", tmp_path)
        counter, both = run.task.flop_counter(run.model), ("forget", "retain")
        widths = 2 * [(16, 48), (16, 16), (16, 64), (64, 16)]
        assert run.flops(counter, "retain", 10, 9, ("retain",)) == counter.training(10, 9)
        factors = 2 * 10 * sum(a * a + b * b for a, b in widths)
        assert run.flops(counter, "retain", 10, 9, both) == 2 * counter.forward(10, 9) + factors
        solves = sum((a**3 + b**3) / 3 + 2 * a * b * (a + b) for a, b in widths)
        assert run.flops(counter, "forget", 10, 9, both) == pytest.approx(counter.training(10, 9) + solves)
