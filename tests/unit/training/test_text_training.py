"""Fine-tuning: the same loss as TRL's own, cost counted, errors for what would train on nothing."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import SFTTrainer

from llm_unlearn.config.sections import TrainSection
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError, NonFiniteLossError
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.training.fine_tuning import KeepSteps
from llm_unlearn.training.text_training import FineTuner, Training

ARCHITECTURE = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three four"] * 5, 290)


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    items = []
    for length in generator.integers(5, 20, size=12):
        ids = generator.integers(2, 260, size=length).tolist()
        items.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return Dataset.from_list(items)


def test_the_loss_is_that_of_trl(tokenizer, rows, tmp_path):
    """Token mean over the whole optimizer step, also with accumulation (num_items_in_batch)."""
    section = TrainSection(batch_size=4, gradient_accumulation_steps=2)
    arguments = Training(section, tmp_path, seed=0, quiet=True)._arguments()
    batch = CausalLMCollator(0)([rows[i] for i in range(4)])
    for count in (None, torch.tensor(57)):
        losses = []
        for cls in (SFTTrainer, FineTuner):
            trainer = cls(
                model=make_model(ARCHITECTURE, tokenizer, 0).eval(),
                args=arguments,
                train_dataset=rows,
                data_collator=CausalLMCollator(0),
                processing_class=tokenizer,
            )
            losses.append(float(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_same_weights_as_trl_after_training(tokenizer, rows, tmp_path):
    weights = []
    for cls in (SFTTrainer, FineTuner):
        section = TrainSection(epochs=2, batch_size=2, gradient_accumulation_steps=2, optim="sgd", learning_rate=0.1)
        trainer = cls(
            model=make_model(ARCHITECTURE, tokenizer, 0),
            train_dataset=rows,
            processing_class=tokenizer,
            args=Training(section, tmp_path / cls.__name__, seed=0, quiet=True)._arguments(),
            data_collator=CausalLMCollator(0),
        )
        torch.manual_seed(0)  # the same dropout
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    for name, parameter in weights[0].items():
        torch.testing.assert_close(parameter, weights[1][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_an_answer_may_count_more(accumulated, tokenizer, rows, tmp_path):
    """The first step's loss: rows by their length T, each of mean_t ℓ_t + 3 · (mean over its last two tokens)."""
    rows = rows.map(lambda row: {"completion_mask": [0] * (len(row["labels"]) - 2) + [1, 1]})
    section = TrainSection(
        epochs=1, batch_size=12 // accumulated, gradient_accumulation_steps=accumulated, completion_weight=3.0
    )
    model = make_model({**ARCHITECTURE, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}, tokenizer, 0)
    expected, positions = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor(row["input_ids"])
            nll = -torch.log_softmax(model(ids[None]).logits[0, :-1], -1)[range(len(ids) - 1), ids[1:]][1:]
            expected += len(nll) * float(nll.mean() + 3 * nll[-2:].mean())
            positions += len(nll)
    training = Training(section, tmp_path, 0, quiet=True)
    training.fit(model, rows, tokenizer)
    assert training._trainer.state.log_history[-1]["train_loss"] == pytest.approx(expected / positions, rel=1e-5)


def test_a_step_to_keep_that_a_resumed_training_has_passed_is_refused(tokenizer, rows, tmp_path):
    section = TrainSection(epochs=2, keep_steps=[2], batch_size=4, save_steps=3)

    def train(work_dir):
        def folder(step):
            return work_dir / f"kept-{step}"

        kept = KeepSteps(section.keep_steps, folder, lambda model, path: path.mkdir())
        Training(section, work_dir, 0, quiet=True, kept=kept).fit(
            make_model(ARCHITECTURE, tokenizer, 0), rows, tokenizer
        )

    train(tmp_path)
    assert (tmp_path / "checkpoint-6").is_dir() and (tmp_path / "kept-2").is_dir()
    train(tmp_path)  # nothing is lost
    (tmp_path / "kept-2").rmdir()
    with pytest.raises(InputError, match=r"keep_steps: \[2\] .*step 6.*from the start"):
        train(tmp_path)


def test_a_kept_model_is_that_of_a_training_that_ends_there(tokenizer, rows, tmp_path):
    settings = {"batch_size": 4, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    kept = {}
    Training(
        TrainSection(epochs=2, keep_steps=[3], **settings),
        tmp_path / "a",
        0,
        quiet=True,
        kept=KeepSteps(
            [3],
            lambda step: tmp_path / f"step-{step}",
            lambda model, folder: kept.update({folder.name: {n: p.clone() for n, p in model.state_dict().items()}}),
        ),
    ).fit(make_model(ARCHITECTURE, tokenizer, 0), rows, tokenizer)
    ended, _ = Training(TrainSection(epochs=1, **settings), tmp_path / "b", 0, quiet=True).fit(
        make_model(ARCHITECTURE, tokenizer, 0), rows, tokenizer
    )
    assert kept.keys() == {"step-3"}
    for name, value in ended.state_dict().items():
        assert torch.equal(value, kept["step-3"][name]), name


def test_cost_counts_tokens_without_padding(tokenizer, rows, tmp_path):
    _, cost = Training(TrainSection(epochs=3, batch_size=4), tmp_path, 0, quiet=True).fit(
        make_model(ARCHITECTURE, tokenizer, 0), rows, tokenizer
    )
    assert cost["train_tokens"] == 3 * sum(map(len, rows["input_ids"]))
    assert cost["flops"] > 0 and cost["seconds"] > 0


def test_a_loss_that_breaks_down_is_an_error_that_names_the_remedy(tokenizer, rows, tmp_path):
    section = TrainSection(epochs=30, batch_size=4, max_grad_norm=0.0, warmup_ratio=0.0)
    section = section.model_copy(update={"learning_rate": 1e30})  # which a recipe could not have
    with pytest.raises(NonFiniteLossError, match=r"train\.learning_rate"):
        Training(section, tmp_path, 0, quiet=True).fit(make_model(ARCHITECTURE, tokenizer, 0), rows, tokenizer)


def test_the_model_comes_back_with_its_own_forward(tokenizer, rows, tmp_path):
    model, _ = Training(TrainSection(epochs=1, batch_size=4), tmp_path, 0, quiet=True).fit(
        make_model(ARCHITECTURE, tokenizer, 0), rows, tokenizer
    )
    assert "forward" not in model.__dict__
