"""Stops: non-finite loss, forget-loss ceiling, utility floor with rollback, best model by a named metric."""

from pathlib import Path

import pytest
import torch
from support import assert_same, build, own_weights, rows, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError, NonFiniteLossError
from llm_unlearn.trainers import METHODS
from llm_unlearn.training.checkpoints import last_checkpoint


def test_a_non_finite_loss_names_method_and_step_and_keeps_the_last_good_checkpoint(tmp_path):
    run = trainer("grad_diff", "full", tmp_path, max_steps=6, save_strategy="steps", save_steps=2)
    original, calls = run.unlearning_loss, []

    def breaks_at_step_4(**sets):
        calls.append(None)
        return original(**sets) * (float("nan") if len(calls) == 4 else 1.0)

    run.unlearning_loss = breaks_at_step_4
    with pytest.raises(NonFiniteLossError, match=r"^grad_diff: .*not finite.*step 4\b"):
        run.train()
    checkpoint = Path(last_checkpoint(tmp_path))
    assert checkpoint.name == "checkpoint-2"
    from safetensors.torch import load_file

    assert all(torch.isfinite(t).all() for t in load_file(checkpoint / "model.safetensors").values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    run = trainer(
        "gradient_ascent", "full", tmp_path, max_steps=2, save_strategy="steps", save_steps=1, max_grad_norm=0.0
    )
    run.args.learning_rate = 1e38  # more than a config takes
    with pytest.raises(NonFiniteLossError, match="gradient_ascent"):
        run.train()
    checkpoint = last_checkpoint(tmp_path)
    if checkpoint:
        from safetensors.torch import load_file

        weights = load_file(Path(checkpoint) / "model.safetensors")
        assert all(torch.isfinite(t).all() for t in weights.values())


def test_the_forget_loss_ceiling_stops_the_ascent_and_only_then_and_says_so(tmp_path, caplog):
    free = trainer("gradient_ascent", "full", tmp_path / "a", max_steps=40, learning_rate=1e-2)
    free.train()
    assert free.state.global_step == 40
    ceiling = free.state.log_history[10]["forget_loss"]
    run = trainer(
        "gradient_ascent", "full", tmp_path / "b", max_steps=40, learning_rate=1e-2, forget_loss_ceiling=ceiling
    )
    run.train()
    losses = [entry["forget_loss"] for entry in run.state.log_history if "forget_loss" in entry]
    assert free.cost.get("stopped_by") is None
    assert run.state.global_step < 40
    assert run.cost["stopped_by"].startswith(f"forget_loss_ceiling ({ceiling:g})")
    assert [r.message for r in caplog.records if run.cost["stopped_by"] in r.message]
    assert losses[-1] > ceiling
    assert all(loss <= ceiling for loss in losses[:-1])


def test_the_utility_floor_rolls_back_to_the_last_state_above_it(tmp_path):
    config, cls = METHODS["gradient_ascent"]
    utilities = iter([0.9, 0.8, 0.3, 0.9])
    states = []

    def figures(model):
        states.append(own_weights(model))
        return {"utility": next(utilities)}

    model = build("full")
    run = cls(
        model=model,
        args=config(
            output_dir=str(tmp_path),
            max_steps=8,
            eval_strategy="steps",
            eval_steps=2,
            utility_floor=0.5,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            learning_rate=1e-3,
        ),
        forget_dataset=rows(6, 1),
        data_collator=CausalLMCollator(0),
        evaluate_callback=figures,
    )
    run.train()
    assert run.state.global_step == 6  # the third evaluation was below the floor
    assert_same(own_weights(run.model), states[1])
    assert not torch.equal(states[1]["transformer.wte.weight"], states[2]["transformer.wte.weight"])


def test_a_floor_that_nothing_looks_at_is_refused(tmp_path):
    with pytest.raises(InputError, match="eval_strategy"):
        METHODS["kl"][0](output_dir=str(tmp_path), utility_floor=0.5)


def test_the_best_model_by_a_named_metric_is_kept(tmp_path):
    config, cls = METHODS["gradient_ascent"]
    attack = iter([0.9, 0.2, 0.7])
    states = []

    def figures(model):
        states.append(own_weights(model))
        return {"attack": next(attack)}

    run = cls(
        model=build("full"),
        forget_dataset=rows(6, 1),
        args=config(
            output_dir=str(tmp_path),
            max_steps=6,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            metric_for_best_model="eval_attack",
            greater_is_better=False,
            load_best_model_at_end=True,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=CausalLMCollator(0),
        evaluate_callback=figures,
    )
    run.train()
    assert_same(own_weights(run.model), states[1])


def test_forget_and_retain_losses_are_logged_apart(tmp_path):
    run = trainer("grad_diff", "full", tmp_path, max_steps=2, alpha=1.0)
    run.train()
    entry = run.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["retain_loss"] - entry["forget_loss"], abs=1e-4)
