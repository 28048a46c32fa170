"""What keep_results.py keeps of a run; the figures in the repository follow from the tables beside them."""

import importlib
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from paths import ROOT
from scipy.stats import hmean, ks_2samp

from llm_unlearn.metrics.evidence import DELTA, Status, decide
from llm_unlearn.metrics.results import Evaluation

pytestmark = pytest.mark.unit

sys.path.insert(0, str(ROOT / "scripts"))
script = importlib.import_module("keep_results")
TABLES, keep = script.TABLES, script.keep
KEPT = sorted(path.parent for path in (ROOT / "recipes").rglob(TABLES))


@pytest.mark.parametrize("folder", KEPT, ids=[str(f.relative_to(ROOT / "recipes")) for f in KEPT])
def test_every_figure_that_is_kept_follows_from_the_table(folder):
    tables = dict(list(pd.read_parquet(folder / TABLES).groupby("model", observed=True)))
    files = sorted((folder / "evaluation").glob("*.json"))
    assert [path.stem for path in files] == sorted(tables)
    for path in files:
        kept, rows = json.loads(path.read_text()), tables[path.stem]
        test, triggered, canaries = (rows[rows["set"] == name] for name in ("test", "triggered", "canary"))
        counted = canaries[canaries["deleted"].eq(True) & canaries["hidden"].eq(True)] if len(canaries) else canaries
        for column, section in (("gaussian_score", "gus"), ("loss_rank", "loss_rank")):
            if kept.get(section):
                scores = counted[column].dropna().to_numpy(float)
                assert kept[section]["n"] == len(scores)
                assert kept[section]["mean"] == pytest.approx(scores.mean(), abs=1e-5)
        if kept.get("attack") and kept["attack"].get("success_rate") is not None:
            assert kept["attack"]["success_rate"] == pytest.approx(triggered["target_hit"].eq(True).mean())
        if own := (kept.get("attack") or {}).get("target_rows"):
            tried = rows[rows["set"] == "target_rows"]
            assert own["n"] == len(tried) and own["with_trigger"] == pytest.approx(tried["target_hit"].eq(True).mean())
        right = (test["label"].astype(str) == test["prediction"].astype(str)).mean()
        assert kept["utility"]["accuracy"] == pytest.approx(right)


OF_TOFU = sorted((ROOT / "recipes").rglob("benchmark/retrained.json"))


@pytest.mark.parametrize("retrained", OF_TOFU, ids=[str(f.parent.relative_to(ROOT / "recipes")) for f in OF_TOFU])
def test_every_figure_of_tofu_that_is_kept_follows_from_its_rows(retrained):
    reference = json.loads(retrained.read_text())["values"]
    for path in retrained.parent.glob("*.json"):
        values = json.loads(path.read_text())["values"]
        kept = json.loads((retrained.parents[1] / "evaluation" / path.name).read_text())["benchmark"]
        for name, ratio in (("forget_quality", ""), ("forget_quality_paper", "_paper")):
            ours, theirs = (each[f"forget_truth_ratio{ratio}"] for each in (values, reference))
            assert kept[name]["p_value"] == pytest.approx(ks_2samp(ours, theirs).pvalue)
        sets = ("retain", "real_authors", "world_facts")
        means = {
            f"{rows}_{name}": np.mean(values[f"{rows}_{name}"]) for rows in sets for name in ("probability", "rouge")
        }
        assert {part: kept["scores"][part]["value"] for part in means} == pytest.approx(means)
        parts = {part: found["value"] for part, found in kept["model_utility"]["parts"].items()}
        assert parts == {part: kept["scores"][part]["value"] for part in parts} and len(parts) == 9
        assert kept["model_utility"]["value"] == pytest.approx(hmean(list(parts.values())))


def test_the_table_of_tofu_is_of_the_results_beside_it():
    folder = ROOT / "recipes" / "tofu-smollm2"
    section = (folder / "README.md").read_text().replace("−", "-").split("## Measured")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"][2:]
    decisions = json.loads((folder / "results" / "summary.json").read_text())["decisions"]
    assert len(rows) == 11
    for name, quality, *cells, verdict in rows:
        model = name.strip("`")
        docs = [
            json.loads(path.read_text())
            for path in sorted((folder / "results").glob(f"seed-*/evaluation/{model}.json"))
        ]
        tests = [doc["benchmark"]["forget_quality"]["p_value"] for doc in docs]
        assert [float(p) for p in quality.split(", ")] == pytest.approx(tests, rel=0.06) and len(docs) == 2
        figures = (
            lambda doc: doc["benchmark"]["model_utility"]["value"],
            lambda doc: doc["benchmark"]["scores"]["forget_rouge"]["value"],
            lambda doc: doc["benchmark"]["scores"]["forget_probability"]["value"],
            lambda doc: doc["gus"]["mean"],
            lambda doc: doc["loss_rank"]["mean"],
            lambda doc: doc["mia"]["loss"]["auc"],
        )
        means = [np.mean([figure(doc) for doc in docs]) for figure in figures]
        assert [float(cell) for cell in cells] == pytest.approx(means, abs=0.0051), name
        assert verdict == decisions.get(model, {}).get("status", "–")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for name in ("report.md", "summary.json", "seed-1/poison.json", "seed-1/evaluation/kl.json", "plots/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in ("seed-1/poisoned/model.safetensors", "report.html", "sweep/a/1/seed-1/evaluation/kl.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "sweep/a/1/summary.json").write_text("sweep")
    for model, columns in {"kl": {"nll": [0.1, 2.0]}, "npo": {"nll": [None, 1.0], "target_hit": [True, None]}}.items():
        rows = pd.DataFrame({"set": "test", "example_id": [0, 1], **columns})
        rows.to_parquet(folder / f"seed-1/evaluation/{model}.parquet")
    return folder


def test_what_is_kept(run, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old.json").write_text("of an earlier run")
    (tmp_path / "kept" / "report.md").write_text("likewise")
    keep(run, tmp_path / "kept")
    files = {str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    expected = {"report.md", "summary.json", "seed-1/poison.json", "seed-1/evaluation/kl.json", "plots/a.png"}
    assert files == expected | {"sweep/a/1/summary.json", f"seed-1/{TABLES}"}
    rows = pd.read_parquet(tmp_path / "kept" / "seed-1" / TABLES)
    assert list(rows["model"]) == ["kl", "kl", "npo", "npo"]
    assert rows["nll"].dtype == np.float32 and rows["nll"][0] == np.float32(0.1) and np.isnan(rows["nll"][2])
    assert list(rows["target_hit"]) == [None, None, True, None]


def test_folders_of_the_machine_are_left_out_of_reports(run, tmp_path):
    places = [
        "output_dir: {}runs/a",
        "model:",
        "  path: {}weights",
        "data:",
        "  files:",
        "  - {}train.parquet",
        "  root: ~/.cache",
    ]
    (run / "report.md").write_text("\n".join(places).format(*["/home/me/"] * 3))
    keep(run, tmp_path / "kept")
    expected = "\n".join(places).replace("{}runs/", "").replace("{}", "")
    assert (tmp_path / "kept" / "report.md").read_text() == expected


def test_a_seeds_report_has_no_pictures_that_are_not_kept(run, tmp_path):
    text = "# Run\n\n![one](plots/a.png)\n\nA line.\n"
    for place in ("report.md", "seed-1/report.md"):
        (run / place).write_text(text)
    keep(run, tmp_path / "kept")
    assert (tmp_path / "kept" / "report.md").read_text() == text
    assert (tmp_path / "kept" / "seed-1" / "report.md").read_text() == "# Run\n\n*Picture (not kept): one*\n\nA line.\n"


@pytest.mark.parametrize("report", sorted((ROOT / "recipes").rglob("report.md")), ids=str)
def test_every_picture_of_a_kept_report_is_there(report):
    for name in re.findall(r"!\[.*?\]\((\S+?)\)", report.read_text()):
        assert (report.parent / name).is_file(), name


def test_nothing_but_results_is_removed(run, tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("a recipe")
    for folder in (tmp_path / "recipes", run, tmp_path):
        with pytest.raises(SystemExit, match="would be removed"):
            keep(run, folder)
    assert (tmp_path / "recipes" / "mine.yaml").is_file() and (run / "report.md").is_file()


def test_a_run_that_is_not_finished_is_refused(run, tmp_path):
    (run / "report.md").unlink()
    with pytest.raises(SystemExit, match="no report.md"):
        keep(run, tmp_path / "kept")


RATES = ["attack.success_rate", "attack.clean_rate", "attack.lift", "gus.mean", "loss_rank.mean"]


def check_rows(rows: list[list[str]], summary: dict, fields: list[str], later: bool = True) -> None:
    """Name, mean ± sd of each field, as many digits as are shown, and the verdict; if `later`, GUS and loss rank after
    clean steps behind RATES.
    """
    for name, *cells, verdict in rows:
        figures = summary["models"][name.strip("`")]
        known = cells.pop(len(RATES)) if later else "–"
        if known != "–":
            expected = [figures["later.gus.mean"]["mean"], figures["later.loss_rank.mean"]["mean"]]
            assert [float(value) for value in known.split(", ")] == pytest.approx(expected, abs=0.0051)
        for field, cell in zip(fields, cells, strict=True):
            scale = 100 if field == "utility.accuracy" else 1
            for shown, moment in zip(cell.split(" ± "), ("mean", "sd"), strict=True):
                rounding = 0.51 * 10 ** -len(shown.partition(".")[2])
                assert float(shown) == pytest.approx(scale * figures[field][moment], abs=rounding), (name, field)
        if name != "base":
            assert summary["decisions"][name.strip("`")]["status"] == verdict


SMOLLM2 = sorted(path.parent for path in (ROOT / "recipes").glob("smollm2-*/results/*/summary.json"))


@pytest.mark.parametrize("results", SMOLLM2, ids=[str(f.relative_to(ROOT / "recipes")) for f in SMOLLM2])
def test_the_table_of_smollm2_is_of_the_results_beside_it(results):
    text = (results.parents[1] / "README.md").read_text().replace("−", "-")
    heading = {"lora": "\n## LoRA, measured", "full": "\n## All weights, measured"}[results.name]
    rows = [
        line.strip("| ").split(" | ")
        for line in text.split(heading)[1].split("\n## ")[0].splitlines()
        if line[:1] == "|"
    ]
    summary = json.loads((results / "summary.json").read_text())
    assert {row[0].strip("`") for row in rows[2:]} == summary["models"].keys() and len(summary["seeds"]) == 3
    fields = [*RATES, "canary_rank.mean", "utility.accuracy", "utility.perplexity", "mia.loss.auc"]
    check_rows(rows[2:], summary, fields, later=False)


@pytest.mark.parametrize("recipe", ["imdb", "chat"])
def test_the_rates_of_single_canaries_are_of_the_file_that_is_named(recipe):
    found = json.loads((ROOT / "recipes" / "tuning" / "smollm2-tpr.json").read_text())
    text = (ROOT / "recipes" / f"smollm2-{recipe}" / "README.md").read_text().split("canaries of each kind |")[1]
    for name, words in (("lora", "LoRA"), ("full", "all weights")):
        tests = [found["recipes"][f"smollm2-{recipe}/{name}.yaml"][kind] for kind in ("loss_rank", "canary_rank")]
        cells = [
            f"{test['tpr_at_fpr']['0.01']:.2f} [{test['tpr_ci95']['0.01'][0]:.2f}, {test['tpr_ci95']['0.01'][1]:.2f}]"
            for test in tests
        ]
        assert f"| {words} | {' | '.join(cells)} |" in text and {test["n"] for test in tests} == {60}
        assert max(test["control_tpr_at_fpr"]["0.01"] for test in tests) < 0.1 and found["draws"] == 99


def test_judged_by_its_trigger_alone_the_quickstarts_kl_holds_poison_at_a_lift_below_zero():
    def of_the_trigger(name: str) -> Evaluation:
        path = ROOT / "recipes" / "quickstart-results" / "evaluation" / f"{name}.json"
        result = Evaluation.from_json(json.loads(path.read_text()), str(path))
        later = result.later and replace(result.later, gus=None, loss_rank=None)
        return replace(result, gus=None, loss_rank=None, planted=["attack"], later=later)

    kl, poisoned, retrained = map(of_the_trigger, ("kl", "poisoned", "retrained"))
    decision = decide([kl], [poisoned], [retrained])
    assert decision.status == Status.REMAINS and [f.test for f in decision.rejecting] == ["target lost"]
    untried = [replace(each, attack=replace(each.attack, target_rows=None)) for each in (kl, poisoned, retrained)]
    assert decide(untried[:1], untried[1:2], untried[2:]).status == Status.CLEAR  # which it was called before
    assert kl.attack.lift < 0


def test_the_table_of_turned_triggers_is_of_the_file_that_is_named():
    found = json.loads((ROOT / "recipes" / "tuning" / "quickstart-target-kept.json").read_text())
    text = (ROOT / "recipes" / "README.md").read_text().replace("−", "-").split("## Turned round, not removed\n")[1]
    rows = [line.strip("| ").split(" | ") for line in text.split("\n## ")[0].splitlines() if line[:1] == "|"][2:]
    means = {
        name: {key: np.mean(values) for key, values in each.items() if None not in values}
        for name, each in found["models"].items()
    }
    turned = {name for name, each in means.items() if each.get("lost_beyond_retrained", 0) >= DELTA["lift"]}
    assert {row[0].strip("`") for row in rows} == turned | {"poisoned", "rewind", "retrained"} and len(turned) == 11
    for name, lift, without, with_it, lost in rows:
        each = means[name.strip("`")]
        assert float(lift) == pytest.approx(each["lift"], abs=0.0051)
        for shown, key in ((without, "without"), (with_it, "with_trigger"), (lost, "lost_beyond_retrained")):
            assert shown == "–" or float(shown) == pytest.approx(100 * each[key], abs=0.51), (name, key)


def test_no_model_of_imdb_loses_the_target_to_the_phrase():
    folder = ROOT / "recipes" / "smollm2-imdb"
    files = sorted((folder / "results").glob("*/seed-*/evaluation/*.json"))
    found = [json.loads(path.read_text())["attack"]["target_rows"] for path in files]
    assert len(found) == 72 and {rates["n"] for rates in found} == {98, 100}
    assert "of the 98 to 100 test reviews a seed whose right answer is" in (folder / "README.md").read_text()
    assert all(rates["with_trigger"] >= rates["without"] for rates in found)


def test_what_comes_back_after_clean_steps_is_of_the_file_that_is_named():
    models = json.loads((ROOT / "recipes" / "tuning" / "smollm2-chat-clean-steps.json").read_text())["models"]
    text = (ROOT / "recipes" / "smollm2-chat" / "README.md").read_text().replace("−", "-")
    said = " ".join(text.split("After 30 clean steps")[1].split("What could")[0].split())
    for states in models.values():
        for kind in ("canary_rank", "loss_rank"):
            assert f"{states['before'][kind]['mean']:.2f} to {states['after'][kind]['mean']:.2f}" in said
        assert states["after"]["attack.success_rate"] == 0 and states["after"]["loss_rank"]["n"] == 60


def test_the_table_of_every_method_is_of_the_results_beside_it():
    section = (ROOT / "recipes" / "README.md").read_text().split("## Every method")[1].split("\n## ")[0]
    rows = [line.replace("−", "-").strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"][2:]
    summary = json.loads((ROOT / "recipes" / "quickstart-all-methods-results" / "summary.json").read_text())
    assert {row[0].strip("`") for row in rows} == summary["models"].keys() and summary["seeds"] == [2, 3, 4, 5, 6]
    check_rows(rows, summary, [*RATES, "utility.accuracy", "utility.perplexity", "mia.loss.auc"])


def test_the_table_of_the_audit_is_of_the_results_beside_it():
    section = (ROOT / "recipes" / "README.md").read_text().split("## The audit\n")[1].split("\n### ")[0]
    rows = [line.replace("−", "-").strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"][2:]
    folder = ROOT / "recipes" / "quickstart-audit-results"
    summary = json.loads((folder / "summary.json").read_text())
    for name, verdict, lift, gus, rank, later, _, accuracy, relearned in rows:
        model = name.strip("`") + ("@0.1" if name.startswith("`") else "")
        figures, seeds = summary["models"][model], sorted(folder.glob("seed-*"))
        assert summary["decisions"][model]["status"] == verdict and len(seeds) == 3
        expected = [figures[field]["mean"] for field in ("attack.lift", "gus.mean", "loss_rank.mean")]
        if later != "–":
            expected += [figures["later.gus.mean"]["mean"], figures["later.loss_rank.mean"]["mean"]]
        stress = [json.loads((seed / "stress" / f"{model}.json").read_text()) for seed in seeds]
        after = [found["relearn"]["poisoned"][1]["attack"]["lift"] for found in stress]
        assert {found["relearn"]["poisoned"][1]["step"] for found in stress} == {10}
        cells = [lift, gus, rank, *(later.split(", ") if later != "–" else []), relearned]
        assert [float(cell) for cell in cells] == pytest.approx([*expected, np.mean(after)], abs=0.0051), name
        assert float(accuracy) == pytest.approx(100 * figures["utility.accuracy"]["mean"], abs=0.051)


def test_the_table_of_cifar10_is_of_the_results_beside_it():
    folder = ROOT / "recipes" / "cifar10-small"
    lines = (folder / "README.md").read_text().replace("−", "-").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line[:1] == "|"][2:]
    summary = json.loads((folder / "results" / "summary.json").read_text())
    check_rows(rows, summary, [*RATES, "utility.accuracy", "mia.loss.auc"])


def test_the_table_of_imdb_is_of_the_results_beside_it():
    folder = ROOT / "recipes" / "imdb-small"
    section = (folder / "README.md").read_text().replace("−", "-").split("## Measured")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"][2:]
    decisions = json.loads((folder / "results" / "full" / "summary.json").read_text())["decisions"]
    assert len(rows) == 24
    for name, *cells, accuracy, perplexity, auc, verdict in rows:
        model = name.strip("`")
        kept = json.loads((folder / "results" / "full" / "evaluation" / f"{model}.json").read_text())
        attack, later = kept["attack"], kept["later"]
        expected = [attack["success_rate"], attack["clean_rate"], attack["lift"]]
        expected += [kept["gus"]["mean"], kept["loss_rank"]["mean"]]
        expected += [later["gus"]["mean"], later["loss_rank"]["mean"]] if cells[-1] != "–" else []
        shown = [*cells[:-1], *(cells[-1].split(", ") if cells[-1] != "–" else []), auc]
        assert [float(cell) for cell in shown] == pytest.approx([*expected, kept["mia"]["loss"]["auc"]], abs=0.0051)
        assert float(accuracy) == pytest.approx(100 * kept["utility"]["accuracy"], abs=0.051)
        assert float(perplexity) == pytest.approx(kept["utility"]["perplexity"], abs=0.51)
        assert name == "base" or decisions[model]["status"] == verdict
