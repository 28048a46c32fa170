"""`completion_weight`: ℓ(r) = mean_t ℓ_t − w · (1/|y|) log π(y | prompt), whatever the layout; 0 changes no bit."""

import pytest
import torch
from datasets import Dataset
from support import VOCABULARY, assert_same, build, own_weights, rows, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.row_forms import with_weights
from llm_unlearn.errors import InputError
from llm_unlearn.tasks import chunk_size, head
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers.support.sets import with_answer_weights
from llm_unlearn.vision.image_task import ImageTask

pytestmark = pytest.mark.unit
METHODS = {"rewind": "full", "grad_diff": "full", "kl": "full", "npo": "lora", "reset_distill": "lora"}


def answered(n: int = 10, seed: int = 2) -> Dataset:
    """Rows of text whose last one, two or three tokens are the answer."""

    def mask(row: dict, index: int) -> dict:
        answer = 1 + index % 3
        return {"completion_mask": [0] * (len(row["input_ids"]) - answer) + [1] * answer}

    return rows(n, seed).map(mask, with_indices=True)


def by_hand(model: torch.nn.Module, row: dict, w: float) -> torch.Tensor:
    """The formula, token by token."""
    ids = torch.tensor(row["input_ids"])
    log_p = torch.log_softmax(model(ids[None]).logits[0, :-1], -1)[range(len(ids) - 1), ids[1:]]
    answer = log_p[torch.tensor(row["completion_mask"][1:]).bool()]
    return -log_p.mean() - w * answer.sum() / len(answer)


class TestWeights:
    def test_by_hand(self):
        """Three supervised tokens, the last of them the answer, w = 2: 1 + 2 · 3/1. The first is never predicted."""
        row = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "completion_mask": [0, 0, 0, 1]}
        assert with_weights(Dataset.from_list([row]), 2.0, "rows")[0]["weight"] == [1.0, 1.0, 1.0, 7.0]
        half = {**row, "labels": [-100, -100, 7, 8], "completion_mask": [1, 1, 1, 1]}
        assert with_weights(Dataset.from_list([half]), 2.0, "rows")[0]["weight"] == [1.0, 1.0, 3.0, 3.0]

    def test_0_leaves_the_rows_without(self):
        assert set(with_weights(answered(), 0.0, "rows").column_names) == {"input_ids", "labels", "noise_id"}

    @pytest.mark.parametrize("mask", [None, [0, 0, 0], [1, 0, 0]])
    def test_rows_without_an_answer_are_refused(self, mask):
        row = {"input_ids": [5, 6, 7], "labels": [5, 6, 7], **({} if mask is None else {"completion_mask": mask})}
        with pytest.raises(InputError, match=r"^retain_dataset.*completion_weight"):
            with_weights(Dataset.from_list([row]), 1.0, "retain_dataset")


def test_the_loss_is_the_formula_on_retain_rows_alone(tmp_path):
    run = trainer("grad_diff", "full", tmp_path, retain=answered(), completion_weight=2.5, alpha=3.0)
    model = build("full").eval()
    inputs = next(iter(run.get_train_dataloader()))
    loss = run.compute_loss(run.model, run._prepare_inputs(inputs))
    items = [run.train_dataset[k] for k in range(4)]
    masks = {tuple(row["input_ids"]): row["completion_mask"] for row in answered()}
    retain = [{**item["retain"], "completion_mask": masks[tuple(item["retain"]["input_ids"])]} for item in items]
    expected = sum(by_hand(model, row, 2.5) for row in retain) / 4
    forget = torch.stack(run.components["forget_loss"]).mean()
    assert float(loss) == pytest.approx(float(3.0 * expected - forget), rel=1e-5)
    plain = sum(by_hand(model, row, 0.0) for row in retain) / 4  # what is logged stays the plain mean
    assert float(torch.stack(run.components["retain_loss"]).mean()) == pytest.approx(float(plain), rel=1e-5)


def test_an_evaluation_reports_the_plain_loss(tmp_path):
    plain, weighted = (
        trainer("rewind", "full", tmp_path, retain=answered(), completion_weight=w).evaluate() for w in (0.0, 3.0)
    )
    assert plain["eval_retain_loss"] == weighted["eval_retain_loss"]


@pytest.mark.parametrize("method", METHODS)
def test_0_is_bit_for_bit_what_rows_without_a_mask_give(method, tmp_path):
    ours = trainer(method, METHODS[method], tmp_path, retain=answered(), completion_weight=0.0)
    theirs = trainer(method, METHODS[method], tmp_path)
    for run in (ours, theirs):
        run.train()
    assert_same(own_weights(ours.model), own_weights(theirs.model))


@pytest.mark.parametrize("method", METHODS)
def test_the_layout_changes_nothing(method, tmp_path, monkeypatch):
    """Two accumulated batches of 4, padding, whole rows and a head in small chunks, against a batch of 8."""

    def trained(**settings) -> dict[str, torch.Tensor]:
        settings = {"per_device_train_batch_size": 8, "completion_weight": 2.0, **settings}
        run = trainer(method, METHODS[method], tmp_path, retain=answered(), **settings, optim="sgd", max_steps=2)
        run.train()
        return own_weights(run.model)

    one = trained()
    assert_same(one, trained(per_device_train_batch_size=4, gradient_accumulation_steps=2), atol=2e-6)
    assert_same(one, trained(collator=CausalLMCollator(0, pad_to=24), task=CausalLMTask(pack=False)), atol=2e-6)
    monkeypatch.setattr(chunk_size, "CHUNK_NUMBERS", 5 * VOCABULARY)
    monkeypatch.setattr(head, "KEPT_BYTES", 0)
    assert_same(one, trained(), atol=2e-6)
    unweighted = trained(completion_weight=0.0)
    assert any(not torch.equal(p, one[n]) for n, p in unweighted.items())


class TestRefused:
    def test_a_method_without_retain_rows(self, tmp_path):
        with pytest.raises(InputError, match="completion_weight: .*no retain row"):
            trainer("gradient_ascent", "full", tmp_path, completion_weight=1.0)

    def test_a_collator_that_drops_the_weights(self, tmp_path):
        def collator(items: list[dict]) -> dict:
            return CausalLMCollator(0)([{k: v for k, v in item.items() if k != "weight"} for item in items])

        run = trainer("rewind", "full", tmp_path, retain=answered(), completion_weight=1.0, collator=collator)
        with pytest.raises(InputError, match="data_collator: .*completion_weight"):
            run.train()

    def test_images(self):
        with pytest.raises(InputError, match="completion_weight: is for texts"):
            with_answer_weights(ImageTask(), {"retain": rows(2, 0)}, 1.0)
