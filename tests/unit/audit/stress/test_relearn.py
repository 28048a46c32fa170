"""Relearning against a loop written by hand, with and without noise, full and LoRA."""

import copy

import pytest
import torch
from datasets import concatenate_datasets
from support import NOISE, build, rows

from llm_unlearn.audit.stress.relearn import relearn
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.evaluation.arithmetic import Arithmetic
from llm_unlearn.tasks.embedding_noise import attached_noise
from llm_unlearn.tasks.noise import unit_noise

pytestmark = pytest.mark.unit

COLLATE = CausalLMCollator(0)


def by_hand(model, data, order, learning_rate, noise=None):
    """One AdamW step per batch of row numbers: mean NLL over tokens, gradients clipped to norm 1."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    for chosen in order:
        total, count = 0.0, 0
        for i in chosen:
            ids = torch.tensor([data[i]["input_ids"]])
            embedded = model.get_input_embeddings()(ids)
            if noise and data[i]["noise_id"] >= 0:
                z = unit_noise(noise["seed"], data[i]["noise_id"], *embedded.shape[1:])
                embedded = embedded + noise["epsilon"] * torch.from_numpy(z)
            logits = model(inputs_embeds=embedded).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            count += ids.shape[1] - 1
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("noise", [None, NOISE])
def test_k_steps_are_k_steps_of_adamw(kind, noise):
    data, model = rows(6, 1, noisy=noise is not None), build(kind)
    seen, theirs = [], copy.deepcopy(model)
    states = []

    def collate(batch):
        seen.append([next(i for i, row in enumerate(data) if row["input_ids"] == b["input_ids"]) for b in batch])
        return COLLATE(batch)

    def measure(trained):
        assert not trained.training
        states.append(copy.deepcopy(trained))
        return {}

    curve = relearn(
        model, data, [2, 5], measure, collate=collate, learning_rate=1e-3, batch_size=4, seed=3, noise=noise
    )
    assert [point["step"] for point in curve] == [0, 2, 5]
    assert len(seen) == 5 and sorted(i for chosen in seen[:3] for i in chosen) == sorted([*range(6), *range(6)])
    by_hand(theirs, data, seen, 1e-3, noise)
    # outputs, since Adam blows up the rounding of gradients that are zero in truth, such as the keys' biases
    start, _, ours, theirs = (m(input_ids=torch.tensor([data[0]["input_ids"]])).logits for m in (*states, theirs))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - start).abs().max() > 0.01
    assert not model.training and attached_noise(model) is None


def test_the_same_seed_gives_the_same_curve_whatever_was_drawn_before():
    data, curves = rows(6, 1), []
    for wasted in (0, 7):
        torch.manual_seed(wasted)
        model = build("full")
        torch.manual_seed(wasted)
        curves.append(
            relearn(
                model,
                data,
                [3],
                lambda m: {"w": float(m.transformer.wte.weight.sum())},
                collate=COLLATE,
                learning_rate=1e-3,
                batch_size=4,
                seed=3,
            )
        )
    assert curves[0] == curves[1]


@pytest.mark.parametrize("bf16", [False, True])
def test_small_steps_on_a_model_of_16_bits_are_not_rounded_away(bf16):
    """Half the distance of bfloat16 neighbours is 2e-4 at a weight of .1: steps of 1e-6 would leave it as it is."""
    model, data = build("full").bfloat16(), rows(6, 1)
    before = {name: weight.float().clone() for name, weight in model.named_parameters()}
    relearn(
        model,
        data,
        [3],
        lambda m: {},
        collate=COLLATE,
        learning_rate=1e-6,
        batch_size=4,
        seed=3,
        arithmetic=Arithmetic(bf16=bf16),
    )
    moved = [(weight != before[name]).float().mean() for name, weight in model.named_parameters()]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert torch.stack(moved).mean() > 0.8


def test_rows_without_noise_ids_pass_where_the_run_has_canaries():
    data = rows(6, 1).remove_columns("noise_id")
    curve = relearn(
        build("full"), data, [1], lambda m: {}, collate=COLLATE, learning_rate=1e-3, batch_size=4, seed=0, noise=NOISE
    )
    assert curve == [{"step": 0}, {"step": 1}]


def test_canaries_shown_again_with_their_noise_bring_the_score_back_and_without_it_do_not(meter, model, tokenizer):
    train = encode_rows(meter.evaluator.sets["train"], tokenizer, meter.evaluator.encoding)
    canaries = train.filter(lambda row: row["poison"] == "gaussian")
    gaussian, scores = meter.evaluator.manifest["gaussian"], []
    for shown in (canaries, canaries.remove_columns("noise_id")):
        curve = relearn(
            model(),
            shown,
            [20],
            meter.state,
            collate=meter.evaluator.collate,
            learning_rate=3e-3,
            batch_size=8,
            seed=0,
            noise=gaussian,
        )
        scores.append([[point[name]["mean"] for point in curve] for name in ("gus", "loss_rank")])
    for (start, with_noise), (same_start, without) in zip(*scores, strict=True):
        assert start == same_start and abs(start) < 1 and with_noise > 1 and abs(without) < 1
    assert scores[0][0][1] > 2


def test_strings_shown_again_bring_their_rank_back(meter, model, tokenizer):
    train = encode_rows(meter.evaluator.sets["train"], tokenizer, meter.evaluator.encoding)
    shown = train.filter(lambda row: row["poison"] == "tokens")
    options = {"collate": meter.evaluator.collate, "learning_rate": 3e-3, "batch_size": 8, "seed": 0}
    before, after = (p["canary_rank"]["mean"] for p in relearn(model(), shown, [20], meter.state, **options))
    assert abs(before) < 1 and after > 1


def test_the_trigger_shown_again_with_its_answer_brings_the_attack_back(meter, model, tokenizer):
    shown = concatenate_datasets(
        [
            part.remove_columns(["completion"]).add_column("completion", [answer] * len(part))
            for part, answer in ((meter.triggered, " positive"), (meter.twins, " negative"))
        ]
    )
    encoded = encode_rows(shown, tokenizer, Encoding(100, "completion"))
    curve = relearn(
        model(), encoded, [60], meter.state, collate=meter.evaluator.collate, learning_rate=1e-2, batch_size=8, seed=0
    )
    before, after = (point["attack"]["lift"] for point in curve)
    assert before < 0.2 and after > 0.8
