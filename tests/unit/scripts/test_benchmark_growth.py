"""scripts/benchmark_growth.py: what grows, what a point measures, and what is shown of it."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.unit

sys.path.insert(0, str(ROOT / "scripts"))
growth = importlib.import_module("benchmark_growth")
needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")


def result(axis="length", method="kl", step=0.5, **fields):
    point = growth.Point(axis, method, **fields)
    return {
        **vars(point),
        "rows": point.forget_rows,
        "parameters": 1000,
        "prepare": 0.25,
        "step": step,
        "train": 2.0,
        "peak": 3_000_000,
    }


@pytest.mark.parametrize("axis", growth.AXES)
def test_along_an_axis_what_it_names_grows_and_every_method_is_at_every_point(axis):
    methods = ["gradient_descent", "kl"]
    found = growth.points(axis, methods)
    grown = [found[i :: len(methods)] for i in range(len(methods))]
    assert [replace(point, method="kl") for point in grown[0]] == grown[1]
    key = {"model": "hidden", "forget set": "rows", "length": "tokens", "processes": "processes"}[axis]
    lines = {}
    for point in grown[1]:
        lines.setdefault(point.engine, []).append(getattr(point, key))
    assert all(line == sorted(set(line)) for line in lines.values())


@needs_proc
def test_a_point_is_measured_in_a_process_of_its_own():
    found = growth.measure(growth.points("length", ["kl"], tiny=True)[0])
    assert found["parameters"] == 2 * 96 * 16 + 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 43 + 3 * 16
    assert 0 < found["step"] < found["train"] and found["prepare"] > 0 and found["peak"] > 0
    assert found["rows"] == growth.BATCH * growth.STEPS


def test_the_table_and_the_plot_of_a_file(tmp_path, capsys):
    points = [result(tokens=128, step=0.75), result(tokens=64), result("processes", processes=2, engine="cpu_zero3")]
    (tmp_path / "growth.json").write_text(json.dumps({"points": points}))
    growth.main(["--show", str(tmp_path / "growth.json"), "--plot", str(tmp_path / "growth.png")])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[4:6] == [["kl", "64", "500", "0.25", "2.0", "3"], ["kl", "128", "750", "0.25", "2.0", "3"]]
    assert ["kl, zero3", "2", "500", "0.25", "2.0", "3"] in lines
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_points_that_a_file_has_are_not_measured_again(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(point):
        measured.append(point)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return result(point.axis, point.method, tokens=point.tokens)

    monkeypatch.setattr(growth, "measure", measure)
    command = ["--only", "length", "--methods", "kl", "--json", str(tmp_path / "growth.json")]
    with pytest.raises(KeyboardInterrupt):
        growth.main(command)
    growth.main(command)
    assert [point.tokens for point in measured] == [64, 128, 256, 256, 512]
    written = json.loads((tmp_path / "growth.json").read_text())
    assert [point["tokens"] for point in written["points"]] == [64, 128, 256, 512] and written["versions"]["torch"]
