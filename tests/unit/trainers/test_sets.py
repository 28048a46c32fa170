"""Which rows meet at which step, and what each step is planned to cost."""

import numpy as np
import pytest
import torch
from support import build, rows, trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.trainers.support.sets import LOG_PROB, RowOrder, SetCollator, SetRows, rows_of

pytestmark = pytest.mark.unit

BOTH = ("forget", "retain")


def numbered(**sizes: int) -> dict[str, list[int]]:
    return {name: list(range(n)) for name, n in sizes.items()}


class TestSetRows:
    def test_each_pass_over_a_set_is_a_permutation_of_it(self):
        dataset = SetRows(numbered(forget=6, retain=9), [BOTH] * 9, 2, seed=0)
        items = [dataset[k] for k in range(len(dataset))]
        forget = [item["forget"] for item in items]
        assert len(items) == 18
        assert all(sorted(forget[i : i + 6]) == list(range(6)) for i in (0, 6, 12))
        assert forget[:6] != forget[6:12]
        assert sorted(item["retain"] for item in items[:9]) == list(range(9))

    def test_the_order_depends_on_the_seed_and_not_on_the_topology(self):
        def draws(seed: int, per_step: int) -> list[dict]:
            dataset = SetRows(numbered(forget=5, retain=7), [BOTH] * (24 // per_step), per_step, seed)
            return [dataset[k] for k in range(24)]

        assert draws(0, 4) == draws(0, 8)
        assert draws(0, 4) != draws(1, 4)

    def test_a_step_has_the_sets_of_its_schedule_and_no_row_is_passed_over(self):
        """Forget rows stand still while retain rows are drawn, and the other way round."""
        schedule = [("retain",), ("retain",), ("forget",), ("retain",), ("forget",)]
        dataset = SetRows(numbered(forget=4, retain=6), schedule, 2, seed=3)
        items = [dataset[k] for k in range(10)]
        assert [tuple(item) for item in items[::2]] == schedule
        assert sorted(item["forget"] for item in items if "forget" in item) == list(range(4))
        assert sorted(item["retain"] for item in items if "retain" in item) == list(range(6))

    def test_a_refusal_is_drawn_with_the_row_that_it_answers(self):
        dataset = SetRows(numbered(forget=5, refusal=5, retain=5), [("forget", "refusal", "retain")] * 6, 2, seed=1)
        items = [dataset[k] for k in range(12)]
        assert all(item["forget"] == item["refusal"] for item in items)
        assert any(item["forget"] != item["retain"] for item in items)

    def test_rows_are_drawn_evenly_over_seeds(self):
        first = [RowOrder({"forget": 4}, seed).index("forget", 0) for seed in range(400)]
        assert (np.bincount(first, minlength=4) > 70).all()  # 100 each, sd 8.7


def test_a_batch_is_flat_with_a_slice_for_each_set_and_the_references_log_probs():
    forget = rows(2, 0).add_column(LOG_PROB, [-1.5, -2.5])
    items = [{"forget": f, "retain": r} for f, r in zip(forget, rows(2, 1), strict=True)]
    batch = SetCollator(CausalLMCollator(0))(items)
    assert batch["sets"] == {"forget": slice(0, 2), "retain": slice(2, 4)}
    assert batch["input_ids"].shape == (4, max(len(row["input_ids"]) for item in items for row in item.values()))
    assert torch.equal(batch[LOG_PROB][:2], torch.tensor([-1.5, -2.5])) and batch[LOG_PROB][2:].isnan().all()
    retain = rows_of(batch, batch["sets"]["retain"])
    assert retain["input_ids"].data_ptr() == batch["input_ids"][2:].data_ptr()  # a view: nothing is copied
    assert retain["rows"].lengths == tuple(len(item["retain"]["input_ids"]) for item in items)


class TestPlan:
    """Costs by the counter's own formulas; 10 retain rows, 6 forget rows, steps of 4."""

    def sizes(self, part) -> tuple[int, int]:
        return sum(map(len, part["input_ids"])), sum(len(labels) - 1 for labels in part["labels"])

    def test_scrub_pays_for_student_and_teacher_and_alternates(self, tmp_path):
        run = trainer("scrub", "full", tmp_path, max_steps=12, msteps=2)
        assert run.plan.schedule == ([("retain",)] * 2 + [("forget",)] * 2) * 2 + [("retain",)] * 4
        counter = FlopCounter.of(build("full"))
        chosen = [run.train_dataset[k]["retain"] for k in range(4)]
        tokens, positions = self.sizes(
            {"input_ids": [r["input_ids"] for r in chosen], "labels": [r["labels"] for r in chosen]}
        )
        assert run.plan.costs[0] == (counter.training(tokens, positions) + counter.forward(tokens, positions), tokens)

    def test_a_budget_says_its_steps_and_how_much_of_the_forget_set_was_seen(self, tmp_path):
        run = trainer("scrub", "full", tmp_path, max_steps=12, msteps=2)  # 2 retain steps of 4 rows, then 2 of forget
        found = [run.plan.spent(steps) for steps in (2, 3, 4, 99)]
        assert [spent["steps"] for spent in found] == [2, 3, 4, 12]
        assert [spent["forget_seen"] for spent in found] == [0.0, 4 / 6, 1.0, 1.0]
        assert trainer("gradient_descent", "full", tmp_path, max_steps=2).plan.spent(2)["forget_seen"] is None
        # the same prompts with other answers stand in for the forget set; beside it they are not counted twice
        for method in ("idk_sft", "osft", "altpo"):
            assert trainer(method, "full", tmp_path, max_steps=2).plan.spent(1)["forget_seen"] == 4 / 6, method

    def test_cached_log_probs_are_paid_for_once(self, tmp_path):
        npo, simnpo = (trainer(m, "full", tmp_path, max_steps=3).plan for m in ("npo", "simnpo"))
        tokens, positions = self.sizes(rows(6, 1))
        assert npo.setup == FlopCounter.of(build("full")).forward(tokens, positions)
        assert npo.costs == simnpo.costs and simnpo.setup == 0
        assert npo.spent(2)["flops"] == npo.setup + sum(flops for flops, _ in npo.costs[:2])

    def test_what_is_frozen_or_not_run_costs_nothing(self, tmp_path):
        """2 blocks: CF-1 goes back through one of them; RMU at layer 0 runs one block, no head, and its teacher's."""
        counter = FlopCounter.of(build("full"))
        whole = trainer("gradient_descent", "full", tmp_path, max_steps=1)
        ((flops, tokens),) = whole.plan.costs
        positions = round((flops - 6 * counter.body * tokens) / (6 * counter.head))
        cf_k = trainer("cf_k", "full", tmp_path, max_steps=1)
        expected = (2 + 1 + 1) * counter.body * tokens + (2 + 2) * counter.head * positions  # the tied head is frozen
        assert cf_k.plan.costs == [(expected, tokens)]
        rmu = trainer("rmu", "full", tmp_path, max_steps=1)
        trained = rmu.model.transformer.h[0].mlp.c_proj.weight.numel()
        ((both, both_tokens),) = rmu.plan.costs
        one_way = 2 * counter.body / 2
        assert both == (2 * one_way + 2 * trained) * both_tokens + one_way * tokens

    def test_ssd_passes_once_over_each_set(self, tmp_path):
        run = trainer("ssd", "full", tmp_path, max_steps=-1)
        assert run.plan.schedule == [("forget",), ("retain",)] * 2 + [("retain",)]
        assert sorted(run.train_dataset.rows_drawn("forget")) == list(range(6))
        assert sorted(run.train_dataset.rows_drawn("retain")) == list(range(10))
