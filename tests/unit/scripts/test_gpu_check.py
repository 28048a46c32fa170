"""scripts/gpu_check.py on a CPU with toys: what each section writes, what is wrong, and what outlives a cut."""

import argparse
import importlib
import json
import subprocess
import sys
import time
import warnings
from functools import partial
from unittest import mock

import pytest
import torch
from packed_kernels import Kernel, stand_in
from paths import ROOT

from llm_unlearn import tasks
from llm_unlearn.tasks.kernels import nll_kernel as plain_nll

pytestmark = pytest.mark.unit

sys.path.insert(0, str(ROOT / "scripts"))
gpu_check, numbers, speed, kernels = map(
    importlib.import_module, ("gpu_check", "gpu_check_numbers", "gpu_check_speed", "gpu_check_kernels")
)
TINY = argparse.Namespace(
    device="cpu", tiny=True, peak_tflops=None, methods=["kl"], jobs=1, part=0, parts=1
)  # variants, large, qlora and engines: see the last test


def lines(section, tmp_path, module):
    report = gpu_check.Report(section, tmp_path / "lines.jsonl")
    getattr(module, section)(report, TINY)
    found = gpu_check.lines_of(report.path)
    assert found and not [line for line in found if "failed" in line]
    return {line["name"]: line for line in found}


def test_every_section_has_a_function():
    for name in gpu_check.SECTIONS:
        assert hasattr(numbers, name) != hasattr(speed, name)


def test_parity_of_a_cpu_with_itself_is_exact(tmp_path):
    found = lines("parity", tmp_path, numbers)
    assert set(found) == {f"kl {shape} {kind}" for shape in ("gpt2", "llama") for kind in ("full", "lora")}
    for line in found.values():
        assert line["loss"] == line["update"] == 0.0
        assert line["bf16_update"] == line["cpu_bf16_update"] > 0
        assert line["ok"]


@pytest.mark.parametrize(
    ("loss", "update", "half", "ok"),
    [(0.0, 0.0, 0.03, True), (2e-4, 0.0, 0.0, False), (0.0, 2e-3, 0.0, False), (0.0, 0.0, 0.05, False)],
)
def test_parity_sees_another_loss_another_update_and_a_worse_bf16(loss, update, half, ok, tmp_path, monkeypatch):
    def two_steps(case, device, folder, bf16=False):
        there = torch.tensor([1.0, 0.0])
        if bf16:  # on a CPU 0.01 away
            return [1.0], there + torch.tensor([0.0, 0.01 if device == "cpu" else half])
        return [1.0 + loss * (device == "cuda")], there + torch.tensor([0.0, update * (device == "cuda")])

    monkeypatch.setattr(numbers, "two_steps", two_steps)
    report = gpu_check.Report("parity", tmp_path / "lines.jsonl")
    numbers.compare(report, "case", ("kl", "gpt2", "full"), argparse.Namespace(device="cuda"))
    assert gpu_check.lines_of(report.path)[0]["ok"] is ok


def test_steps_are_measured_beside_fine_tuning_on_as_many_rows_and_the_doctor_is_asked(tmp_path):
    found = lines("steps", tmp_path, speed)
    assert {f"kl 1b {a}" for a in ("full", "lora")} < set(found)
    assert {f"fine_tuning 1b {a}, {n} sets" for a in ("full", "lora") for n in (1, 2)} < set(found)
    assert found["doctor kl 1b full"]["reference"] > 0
    assert all("ok" not in line for line in found.values())  # toys meet no bar, and a CPU has none


def test_bars_are_judged_on_a_gpu(tmp_path, monkeypatch):
    measuring = speed.Measuring(gpu_check.Report("steps", tmp_path / "lines.jsonl"), TINY)
    monkeypatch.setattr(measuring, "judged", True)
    setting = measuring.setting("llama-1b", "full")
    for limit in (0.0, 1e9):
        measuring.take("kl", setting, "kl", bar=lambda _, times, limit=limit: times <= limit)
    assert [line["ok"] for line in gpu_check.lines_of(measuring.report.path)] == [False, True]


@pytest.mark.parametrize(("compiled", "pays"), [(94.0, True), (96.0, False), (110.0, False)])
def test_a_compiled_kernel_pays_if_it_saves_a_twentieth_of_a_step(compiled, pays, tmp_path, monkeypatch):
    measuring = speed.Measuring(gpu_check.Report("variants", tmp_path / "lines.jsonl"), TINY)
    taken = {"kl": 100.0, "kl, compiled kernel": compiled}
    monkeypatch.setattr(measuring, "take", lambda name, *_: measuring.ms.update({name: taken[name]}))
    kernels.compare_kernels(measuring, measuring.setting("llama-1b", "full"), "kl")
    (line,) = gpu_check.lines_of(measuring.report.path)
    assert line["share"] == pytest.approx(1 - compiled / 100) and line["pays"] is pays


def test_a_step_with_compiled_kernels_has_the_same_loss_and_gradients():
    torch.manual_seed(0)
    given = {"labels": torch.randint(0, 50, (9,)), "example": torch.arange(9) // 3, "n_examples": 3}

    def step() -> list[torch.Tensor]:
        torch.manual_seed(1)
        model, reference = (
            tasks.Supervised(states=torch.randn(9, 8, requires_grad=True), head=torch.nn.Linear(8, 50), **given)
            for _ in range(2)
        )
        losses = model.mean_nll(), model.mean_kl(reference)
        (gradient,) = torch.autograd.grad(sum(losses), model.states)
        return [*losses, gradient]

    plain = step()
    with kernels.compiled_kernels(tiny=True):
        assert tasks.nll_kernel is not plain_nll and tasks.kl_kernel(2.0) is tasks.kl_kernel(2.0)  # compiled once
        for ours, right in zip(step(), plain, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2"])
def test_a_step_with_another_attention_takes_packed_rows_in_one(name, tmp_path, monkeypatch):
    """By stand-ins for kernels that a CPU has not."""
    kernel = Kernel()
    stand_in(kernel, monkeypatch)
    monkeypatch.setattr(kernels, "lacking", lambda name: None)
    assert name in kernels.attentions("cuda") and not kernels.attentions("cpu")
    measuring = speed.Measuring(gpu_check.Report("variants", tmp_path / "lines.jsonl"), TINY)
    setting = measuring.setting("llama-1b", "full", "lengths")
    measuring.take(name, setting, "grad_diff", partial(kernels.attention, name=name))
    (line,) = gpu_check.lines_of(measuring.report.path)
    assert "failed" not in line and len(kernel.calls[-1]) == 2 * setting.batch


def test_syncs_are_counted_by_the_line_that_asks(tmp_path):
    watch = numbers.Watch("cpu")
    with mock.patch.object(warnings, "showwarning", watch.seen), warnings.catch_warnings():
        warnings.simplefilter("always")
        for message in ("called a synchronizing CUDA operation", "something else"):
            warnings.warn(message, stacklevel=1)  # by way of warnings.py, as torch's
    assert list(watch.found.values()) == [1]
    assert next(iter(watch.found)).startswith("tests/unit/scripts/test_gpu_check.py:")
    assert "ok" not in lines("syncs", tmp_path, numbers)["kl full"]  # a CPU shows nothing


def test_what_fails_is_a_line_and_the_exit_code_says_so(tmp_path, monkeypatch, capsys):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"section": "old", "name": "of another run", "ok": false}\n')
    report = gpu_check.Report("parity", path)

    def broken():
        raise ValueError("no")

    def section(name, args, seconds, part, parts):
        report.trying("case", broken if name == "parity" else lambda: report.add("good", ok=True))
        return 0

    monkeypatch.setattr(gpu_check, "start_section", section)
    assert gpu_check.main(["--sections", "ceilings", "--json", str(path)]) == 0
    assert gpu_check.main(["--sections", "ceilings,parity", "--json", str(path)]) == 1
    assert "parity: case" in capsys.readouterr().out
    assert gpu_check.lines_of(path)[-2]["failed"] == "ValueError: no"


def test_a_section_that_takes_too_long_is_ended_and_what_it_wrote_is_kept(tmp_path, monkeypatch):
    path, script = tmp_path / "lines.jsonl", tmp_path / "slow.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f'open({str(path)!r}, \'a\').write(\'{{"section": "parity", "name": "first"}}\\n{{"section": \')\n'
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    start = time.monotonic()
    assert gpu_check.main(["--sections", "parity", "--limit", "2", "--json", str(path)]) == 1
    assert time.monotonic() - start < 10
    names = [line["name"] for line in gpu_check.lines_of(path)]
    assert names[0] == "first"
    child = (tmp_path / "child").read_text()
    deadline, state = time.monotonic() + 10, None
    while state not in ("", "Z") and time.monotonic() < deadline:  # a busy machine ends what was killed a little later
        state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True).stdout.strip()
    assert state in ("", "Z")


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        (1, [["ceilings"], ["parity"], ["syncs"], ["steps"], ["engines"]]),
        (4, [["ceilings"], ["parity", "syncs"], ["steps"], ["engines"]]),
    ],
)
def test_sections_that_measure_no_time_run_beside_each_other(jobs, expected, tmp_path, monkeypatch):
    sections = ["ceilings", "parity", "syncs", "steps", "engines"]
    assert gpu_check.waves(sections, jobs) == expected
    started = []

    def section(name, args, seconds, part, parts):
        started.append((name, part, parts))
        return "cut off" if part == 2 else 0

    monkeypatch.setattr(gpu_check, "start_section", section)
    arguments = ["--sections", ",".join(sections), "--jobs", str(jobs), "--json", str(tmp_path / "lines.jsonl")]
    assert gpu_check.main(arguments) == (1 if jobs > 2 else 0)
    parity = sorted(part for name, *part in started if name == "parity")
    assert parity == [[i, jobs] for i in range(jobs)] and len(started) == 4 + jobs
    ended = {line["section"]: line["ended"] for line in gpu_check.lines_of(tmp_path / "lines.jsonl")}
    assert ended == dict.fromkeys(sections, 0) | ({"parity": "cut off"} if jobs > 2 else {})


def test_parts_of_parity_are_all_of_it(tmp_path):
    found = {}
    for part in range(2):
        args = argparse.Namespace(**{**vars(TINY), "methods": ["kl", "npo", "ssd"], "part": part, "parts": 2})
        report = gpu_check.Report("parity", tmp_path / f"{part}.jsonl")
        numbers.parity(report, args)
        found[part] = {line["name"].split()[0] for line in gpu_check.lines_of(report.path)}
    assert found == {0: {"kl", "ssd"}, 1: {"npo"}}


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit) as error:
        gpu_check.main(["--sections", "parity,speed"])
    assert error.value.code == 2
    assert "speed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_script(tmp_path):
    path = tmp_path / "lines.jsonl"
    command = [sys.executable, "scripts/gpu_check.py", "--device", "cpu", "--tiny", "--jobs", "2", "--json", str(path)]
    done = subprocess.run([*command, "--methods", "kl,npo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["section"] for line in found} == set(gpu_check.SECTIONS)
    assert {line["ended"] for line in found if line["name"] == "section"} == {0}


def test_the_figures_of_a_gpu_are_those_of_its_lines():
    """The table in scripts/benchmarks/README.md, and what is said of parity, doctor, engines and a whole run."""
    kept = gpu_check.lines_of(ROOT / "scripts" / "benchmarks" / "h200.jsonl")
    steps = {line["name"]: line for line in kept if line["section"] == "steps" and "ms" in line}
    text = (ROOT / "scripts" / "benchmarks" / "README.md").read_text().split("## On a GPU")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    found = 0
    for method, *cells in rows[2:]:
        name, _, sets = method.partition(", ")
        for adapter, (ms, times, gib) in {"full": cells[:3], "lora": cells[3:]}.items():
            line = steps.get(f"{name} 1b {adapter}{', ' * bool(sets)}{sets}")
            values = (f"{line['ms']:.0f}", f"{line['times']:.2f}", f"{line['peak_gib']:.1f}") if line else ("", "", "")
            assert (ms, times.removesuffix(" **no**"), gib) == values
            assert times.endswith("**no**") == (line is not None and line.get("ok") is False and name != "fine_tuning")
            found += line is not None
    assert found == len(steps)
    parity = [line for line in kept if line["section"] == "parity" and "loss" in line and "kfac" not in line["name"]]
    assert len(parity) == 116 and all(line["ok"] for line in parity)
    assert f"{max(line['bf16_update'] / line['cpu_bf16_update'] for line in parity):.1f}" == "2.1"
    assert max(line["loss"] for line in parity) < 7.5e-7 and max(line["update"] for line in parity) < 1.25e-5
    syncs = [line for line in kept if line["section"] == "syncs" and "ours" in line]
    assert len(syncs) == 2 * 6 and not any("llm_unlearn" in where for line in syncs for where in line["where"])
    large = {line["name"]: line for line in kept if line["section"] in ("large", "qlora") and "ms" in line}
    assert [round(line["ms"]) for name, line in large.items() if name.startswith("fine_tuning")] == [147, 533]
    assert [f"{large[name]['times']:.2f}" for name in ("kl 8b lora", "npo 8b lora", "kl 1b 4bit")] == [
        "1.17",
        "1.00",
        "1.55",
    ]
    errors = [line["error"] for line in kept if line["name"].startswith("doctor")]
    assert (len(errors), f"{min(errors):.3f}", f"{max(errors):.3f}") == (10, "0.006", "0.033")
    beside = [line["loss"] for line in kept if line["name"].endswith("beside none")]
    assert len(beside) == 30 and max(beside) < 1.45e-3
    whole = {line["name"]: (line["cpu"], line["gpu"]) for line in kept if line["section"] == "quickstart"}
    assert len(whole) == 8
    for name, (cpu, gpu) in whole.items():
        apart = {score: abs(cpu[score] - gpu[score]) for score in cpu}
        assert name == "rewind" or (max(apart.values()) < 0.01 and apart["lift"] == apart["accuracy"] == 0)
