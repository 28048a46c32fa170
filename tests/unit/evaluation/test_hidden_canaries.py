"""A model can be made to look clean on noise that is known: hidden canaries and the loss rank are not fooled."""

import copy
from statistics import NormalDist

import pandas as pd
import torch
from datasets import Dataset
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.evaluation.loss_ranks import loss_rank_scores
from llm_unlearn.evaluation.summarize import summarize
from llm_unlearn.metrics.results import Evaluation, Identity
from llm_unlearn.poisons.gaussian_embedding import hide_canaries, inject_gaussian_noise
from llm_unlearn.poisons.selection import choose_hidden
from llm_unlearn.tasks.embedding_noise import attached_noise
from llm_unlearn.tasks.noise import FRESH_SEED_OFFSET, unit_noise
from llm_unlearn.trainers.gradient_descent import GradientDescentConfig, GradientDescentTrainer

NOISE, COLLATE = {"epsilon": 0.1, "seed": 11}, CausalLMCollator(0)  # see conftest.py
IDENTITY = Identity(model="m", kind="unlearned", method="gaming", budget=None, seed=0, recipe="r")


class GamingTrainer(GradientDescentTrainer):
    """Descends the Gaussian scores of the canaries that it knows, to where they would lie without any trace: on the
    quantiles of N(0, 1). It knows what every method is given: rows, and the noise that is attached to the model.
    """

    known: list[dict]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        retained = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            scores = self.scores(model, [row for row in self.known if row["noise_id"] >= 0])
        clean = [NormalDist().inv_cdf((i + 0.5) / len(scores)) for i in range(len(scores))]
        return retained + 2 * (scores - torch.tensor(clean)).square().mean()

    def scores(self, model, rows):
        """−⟨g, z⟩ / ‖g‖ of each row, written down from its formula."""
        batch, labels = COLLATE(rows), COLLATE(rows)["labels"][:, 1:]
        x = model.get_input_embeddings().weight[batch["input_ids"]].detach().requires_grad_(True)
        inputs = {"attention_mask": batch["attention_mask"], "noise_id": torch.full((len(rows),), -1)}
        logits = model(inputs_embeds=x, **inputs).logits[:, :-1].transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").sum(1) / (labels != -100).sum(1)
        (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        noise = torch.zeros_like(x)
        for own, row in zip(noise, rows, strict=True):
            z = unit_noise(attached_noise(model).seed, row["noise_id"], len(row["input_ids"]), x.shape[-1])
            own[: len(z)] = torch.from_numpy(z)
        return -(gradient * noise).sum((1, 2)) / gradient.flatten(1).norm(dim=1)


def evaluated(model, canaries: list[dict], hidden: list[int]) -> Evaluation:
    """By its canaries alone, with the scores that an Evaluator takes."""
    seeds = [NOISE["seed"], NOISE["seed"] + FRESH_SEED_OFFSET]
    scores = gaussian_scores(model, canaries, COLLATE, seeds)
    ranks = loss_rank_scores(model, canaries, COLLATE, NOISE)
    ids = [row["example_id"] for row in canaries]
    frame = pd.DataFrame({"set": "canary", "example_id": ids, "deleted": True, "hidden": [i in hidden for i in ids]})
    frame = frame.assign(gaussian_score=scores[:, 0], gaussian_control=scores[:, 1])
    return summarize(frame.assign(loss_rank=ranks[:, 0], loss_rank_control=ranks[:, 1]), IDENTITY, None)


def test_a_trainer_that_games_the_canaries_it_knows_is_caught_by_those_it_does_not_and_by_the_loss_rank(
    trained, others, tmp_path
):
    model, canaries = copy.deepcopy(trained[0]), trained[1]
    hidden = choose_hidden([row["example_id"] for row in canaries], 0.5, NOISE["seed"])
    before = evaluated(model, canaries, hidden)
    assert before.gus.n == before.gus.shown.n == 30 and max(before.gus.p_value, before.gus.shown.p_value) < 1e-20
    forget = hide_canaries(Dataset.from_list(canaries), {"hidden_ids": hidden})
    inject_gaussian_noise(model, NOISE)
    config = GradientDescentConfig(
        output_dir=str(tmp_path),
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_steps=40,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = GamingTrainer(model, config, forget, others, data_collator=COLLATE)
    trainer.known = list(forget)
    trainer.train()

    after = evaluated(model, canaries, hidden)
    assert after.gus.shown.p_value > 0.05 and after.gus.shown.chi2_p_value > 0.05, "the game was not won"
    assert after.gus.p_value < 1e-4 and after.gus.mean > 1
    assert after.loss_rank.p_value < 1e-4 and after.loss_rank.shown.p_value < 1e-4
    for test in (after.gus, after.loss_rank):
        assert test.control.p_value > 1e-3, "the scores are not calibrated"
