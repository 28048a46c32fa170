"""The paper's eight methods and the two baselines know nothing of text: the same classes unlearn a classifier.

A task of a few lines stands here in the place of the causal LM's: rows `x, y`, one supervised position per row.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.contract

PAPER = (
    "gradient_descent",
    "noisy_gradient_descent",
    "gradient_ascent",
    "eu_k",
    "cf_k",
    "scrub",
    "neggrad_plus",
    "ssd",
)
BASELINES = ("rewind", "reset_distill")
OPTIONS = {
    "ssd": {"alpha": 1.5, "lam": 1.0},
    "noisy_gradient_descent": {"learning_rate": 0.5},
    "scrub": {"msteps": 9, "learning_rate": 3e-2},
    "neggrad_plus": {"beta": 0.5},
}
UP = {"gradient_ascent", "neggrad_plus", "scrub", "ssd"}  # the forget loss rises; elsewhere the retain loss falls


class Classifier(nn.Module):
    """4 numbers → 8 → 8 → 3 classes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)

    def save_pretrained(self, folder, **kwargs):
        torch.save(self.state_dict(), f"{folder}/weights.pt")


class ClassifierTask(Task):
    columns = ("x", "y")

    def supervised(self, model, inputs):
        logits = model(inputs["x"])
        return Supervised(states=logits, labels=inputs["y"], example=torch.arange(len(logits)), n_examples=len(logits))

    def depth(self, model):
        return len(model.layers)

    def last_blocks(self, model, k):
        return [*model.layers[-k:], model.head]

    def reinitialise(self, model, modules, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in modules:
                module.reset_parameters()


def rows(n: int, seed: int) -> Dataset:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 4)).astype(np.float32)
    return Dataset.from_dict({"x": x.tolist(), "y": (x[:, 0] > 0).astype(int).tolist()})


def collate(items):
    return {"x": torch.tensor([i["x"] for i in items]), "y": torch.tensor([i["y"] for i in items])}


def trainer(method, folder, model=None, retain=None, **options):
    config, cls = METHODS[method]
    options = {
        "learning_rate": 1e-2,
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        **OPTIONS.get(method, {}),
        **options,
    }
    others = {"start_model": Classifier(1)} if cls.starts_clean else {}
    return cls(
        model=Classifier(0) if model is None else model,
        args=config(output_dir=str(folder), **options),
        forget_dataset=rows(8, 1),
        retain_dataset=rows(24, 2) if retain is None else retain,
        data_collator=collate,
        task=ClassifierTask(),
        **others,
    )


QUICK = ("scrub", "ssd", "eu_k", "reset_distill")  # own sets, no loop, blocks drawn anew, a start model


def cases(*methods: str) -> list:
    return [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in methods]


@pytest.mark.parametrize("method", cases(*PAPER, *BASELINES))
def test_a_method_of_the_paper_unlearns_a_classifier_too(method, tmp_path):
    before = trainer("gradient_descent", tmp_path, retain=rows(8, 1), max_steps=60)
    before.train()  # a model that knows the forget rows
    run = trainer(method, tmp_path, model=before.model)
    start = run.evaluate()
    run.train()
    end = run.evaluate()
    if method in UP:
        assert end["eval_forget_loss"] > start["eval_forget_loss"] + 0.001
    else:
        assert end["eval_retain_loss"] < start["eval_retain_loss"] - 0.01
    assert run.cost["flops"] > 0


@pytest.mark.parametrize("method", cases(*PAPER))
def test_accumulation_changes_nothing_there_either(method, tmp_path):
    finals = []
    for batch, accumulation in ((8, 1), (4, 2)):
        run = trainer(
            method,
            tmp_path,
            max_steps=4,
            optim="sgd",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        finals.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(*finals, rtol=0, atol=2e-6)
