"""scripts/benchmark.py: the naive step computes what ours does, ratios and bars are as by hand, results are kept."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paths import ROOT

from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.unit

sys.path.insert(0, str(ROOT / "scripts"))
benchmark, memory, steps = map(importlib.import_module, ("benchmark", "benchmark_memory", "benchmark_steps"))
TINY = steps.Setting("llama", tiny=True)
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")


def loss_and_gradients(contender: object, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of one step at weights away from the reference's, where a divergence and its gradient are not 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in contender.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    loss = contender.trainer.training_step(contender.model, batch)
    return loss, {name: p.grad for name, p in contender.model.named_parameters()}


@pytest.mark.parametrize("rows", ["text", "completion", "lengths"])
@pytest.mark.parametrize("shape", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["kl", "npo"])
def test_the_naive_step_computes_what_ours_does(method, shape, rows, tmp_path):
    setting = replace(TINY, shape=shape, rows=rows)
    ours = steps.CONTENDERS[method](setting, str(tmp_path))
    naive = steps.CONTENDERS[f"naive_{method}"](setting, str(tmp_path))
    items = [ours.trainer.train_dataset[k] for k in range(setting.batch)]  # of ours' first batch
    batch = {
        name: steps.right_padded(steps.Dataset.from_list([item[name] for item in items]), "cpu")
        for name in ("forget", "retain")
    }
    loss, gradients = loss_and_gradients(ours, ours.batches[0])
    naive_loss, naive_gradients = loss_and_gradients(naive, batch)
    torch.testing.assert_close(loss, naive_loss, rtol=1e-4, atol=0.0)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert scale > 0.01
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, naive_gradients[name], rtol=1e-4, atol=1e-6 * scale, msg=name)


def test_a_naive_step_is_on_as_many_tokens_and_counts_the_reference(tmp_path):
    made = {name: steps.CONTENDERS[name](TINY, str(tmp_path)) for name in ("fine_tuning", "kl", "naive_kl", "sft")}
    assert len({contender.tokens for contender in made.values()}) == 1
    assert made["sft"].flops == made["fine_tuning"].flops < made["kl"].flops == made["naive_kl"].flops


def test_a_step_changes_the_weights_unless_told_not_to(tmp_path):
    for name, changes in (("fine_tuning", True), ("forward_backward", False)):
        made = steps.CONTENDERS[name](TINY, str(tmp_path))
        before = [p.detach().clone() for p in made.model.parameters()]
        made()
        moved = any(not torch.equal(p, old) for p, old in zip(made.model.parameters(), before, strict=True))
        assert moved is changes
        assert all(p.grad is None for p in made.model.parameters())


def test_scrub_takes_a_min_and_a_max_step_and_rmu_stops_a_third_of_the_way_up(tmp_path):
    scrub = steps.CONTENDERS["scrub"](TINY, str(tmp_path))
    assert [list(batch["sets"]) for batch in scrub.batches] == [["retain"], ["forget"]]
    assert steps.CONTENDERS["rmu"](TINY, str(tmp_path)).trainer.layer == 1  # of 2


def test_groups_name_what_there_is():
    assert set(benchmark.SHAPES) == set(steps.SHAPES)
    for group in benchmark.GROUPS.values():
        assert set(group.contenders) <= set(steps.CONTENDERS)
        assert {name for bar in group.bars for name in (bar.contender, bar.against)} <= set(group.contenders)
        assert {bar.measure for bar in group.bars} <= set(benchmark.MEASURES)
    assert {"kl", "npo", "scrub"} <= set(METHODS) & set(steps.CONTENDERS)


# ---- arithmetic, by hand

# per token 1, 2, 1 s and 1.5, 2, 3 s, so 1.5, 1, 3 times as long
BASE = {"seconds": [10.0, 20.0, 10.0], "tokens": 10, "peak": 1000, "beyond": 400}
OTHER = {"seconds": [30.0, 40.0, 60.0], "tokens": 20, "peak": 1300, "beyond": 100}


def judged(measure: str, limit: float, **changes: object) -> dict:
    contenders = {"base": BASE, "other": OTHER | changes}
    return benchmark.judge(benchmark.Bar("other", "base", measure, limit), contenders, copy_bytes=200)


def test_ratios_are_per_token_and_per_round():
    assert benchmark.ratios(OTHER, BASE) == [1.5, 1.0, 3.0]
    assert benchmark.spread([1.5, 1.0, 3.0]) == {"median": 1.5, "q1": 1.25, "q3": 2.25}


@pytest.mark.parametrize(
    ("measure", "value", "limits"),
    [
        ("time", 1.5, (1.5, 1.49)),
        ("speedup", 1 / 1.5, (0.66, 0.67)),
        ("peak", 1.3, (1.3, 1.2)),
        ("beyond", 0.25, (0.25, 0.24)),
        ("copies", 1.5, (1.5, 1.4)),
    ],
)
def test_a_bar_is_met_up_to_its_limit(measure, value, limits):
    results = [judged(measure, limit) for limit in limits]
    assert [result["value"] for result in results] == pytest.approx([value, value])
    assert [result["met"] for result in results] == [True, False]


def test_memory_that_was_not_measured_is_neither_met_nor_not():
    result = judged("peak", 1.0, peak=None, beyond=None)
    assert result["value"] is None
    assert result["met"] is None
    assert judged("time", 2.0, peak=None)["met"] is True


def test_figures_of_a_contender():
    figures = benchmark.figures_of(
        {"seconds": [2.0, 4.0, 6.0], "steps": 2, "tokens": 100, "flops": 8e12},
        {"seconds": [1.0, 2.0, 3.0], "tokens": 100},
        peak_tflops=10,
    )
    assert figures == {
        "ms_per_step": {"median": 2000.0, "q1": 1500.0, "q3": 2500.0},
        "tokens_per_second": 25.0,
        "ratio": {"median": 2.0, "q1": 2.0, "q3": 2.0},
        "utilisation": 0.2,
    }


def test_contenders_take_turns_and_each_begins_once():
    calls = []
    made = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = benchmark.take_turns(made, 3, on_gpu=False)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"  # the first to warm up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}


# ---- end to end


@needs_proc
def test_a_tiny_run_writes_every_field_and_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "peak_apart", memory.peak)  # a process of its own takes seconds to begin
    path = tmp_path / "results.json"
    benchmark.main(
        [
            "--only",
            "kl",
            "gus",
            "--shape",
            "llama",
            "--tiny",
            "--repeats",
            "2",
            "--json",
            str(path),
            "--peak-tflops",
            "1",
        ]
    )
    results = json.loads(path.read_text())
    assert list(results) == ["kl/llama/cpu/tiny", "gus/llama/cpu/tiny"]
    for result in results.values():
        assert result["device_name"] and result["versions"]["torch"] and result["repeats"] == 2
        for row in result["contenders"].values():
            assert row.keys() == {
                "seconds",
                "steps",
                "tokens",
                "flops",
                "peak",
                "beyond",
                "ms_per_step",
                "tokens_per_second",
                "ratio",
                "utilisation",
            }
            assert len(row["seconds"]) == 2
            assert row["peak"] is not None
        assert all(bar["met"] in (True, False) for bar in result["bars"])
    printed = capsys.readouterr().out
    assert re.search(r"^### kl, llama.*\bfull\b.*\bfp32\b", printed, re.MULTILINE)
    assert "| kl / fine_tuning: time" in printed
    benchmark.main(["--show", str(path)])
    assert capsys.readouterr().out == printed


def test_without_memory_its_bars_are_not_measured(tmp_path, capsys):
    benchmark.main(["--only", "kl-lora", "--shape", "gpt2", "--tiny", "--repeats", "1", "--no-memory"])
    assert "not measured" in capsys.readouterr().out


@pytest.mark.slow
@needs_proc
def test_a_peak_is_measured_in_a_process_of_its_own():
    figures = memory.peak_apart("fine_tuning", replace(TINY, tiny=False, rows="completion"))
    weights = 20 * 2**20 * 4  # about 20 million parameters: weights, gradients, two moments
    assert figures["peak"] > 2.5 * weights
    assert figures["beyond"] < figures["peak"] - 2.5 * weights


def test_results_are_added_to_those_of_other_groups(tmp_path):
    path = tmp_path / "results.json"
    for key, value in (("kl", 1), ("npo", 2), ("kl", 3)):
        benchmark.merge(path, key, {"value": value})
    assert json.loads(path.read_text()) == {"kl": {"value": 3}, "npo": {"value": 2}}
    assert list(tmp_path.iterdir()) == [path]
