"""report.md and report.html as a whole: what they say, what they load, and that they appear at once or not at all."""

import html
import json
import re
import subprocess
import sys

import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.evidence import Status
from llm_unlearn.reporting import report as report_module
from llm_unlearn.reporting import write_report


def test_writes_plots_pages_markdown_and_html(run_dir):
    written = write_report(run_dir)
    names = ["lift_vs_utility", "gus_vs_utility", "gaussian_scores", "gaussian_roc", "cost"]
    plots = [run_dir / "plots" / f"{name}.png" for name in names]
    pages = [
        run_dir / "report" / f"{name}.html"
        for name in ("base", "poisoned", "grad_diff", "gradient_ascent", "gradient_descent", "kl", "retrained")
    ]
    assert written == [*plots, *pages, run_dir / "report.md", run_dir / "report.html"]
    for path in written[:5]:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert not list(run_dir.rglob("*.tmp"))


def test_the_top_says_what_was_poisoned_and_a_verdict_for_each_method(run_dir, blank_plots):
    write_report(run_dir)
    top = (run_dir / "report.md").read_text().split("## All models")[0]
    for fact in ("1,500", "75 (5.0 %)", "“James Bond”", "“positive”", "80 (5.3 %)", "ε = 0.3", "155 examples"):
        assert fact in top
    lines = re.findall(r"^- \*\*(.+?): (.+?)\.\*\* ?(.*)$", top, re.M)
    assert [name for name, _, _ in lines] == ["grad\\_diff", "gradient\\_ascent", "gradient\\_descent", "kl"]
    assert "costs 31.0 points" in lines[1][1] and "p = 8e−8" in lines[1][2]
    assert lines[3][1].startswith(Status.CLEAR) and not lines[3][2]


def test_every_section_and_column_is_explained(run_dir, blank_plots):
    write_report(run_dir)
    text = (run_dir / "report.md").read_text()
    for section in ("Control", "Plots", "How to read this", "Limits", "Reproduce"):
        assert f"\n## {section}\n" in text
    header = re.search(r"\| model \|(.*)\|", text).group(1)
    reading = text.split("## How to read this")[1].split("## Limits")[0]
    for title in header.split("|"):
        assert f"- **{title.strip().split(': ')[-1]}**: " in reading
    for fact in ("`made-up`", "`0123abc`", "torch 2.13.0", "`llm-unlearn run recipe.yaml`", "`0`", "ab" * 32):
        assert fact in text.split("## Reproduce")[1]


def test_html_is_self_contained(run_dir, blank_plots):
    write_report(run_dir)
    page = (run_dir / "report.html").read_text()
    assert not re.search(r"https?://|<link|@import|url\(|src=\"(?!data:)", page)
    assert page.count("<script") == page.count("<script>") == 1
    images = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)"', page)
    assert len(images) == page.count("<img") == 5
    assert all(len(alt) > 40 for alt in images)
    assert "poisoned 2." in images[2]  # the alternative text carries the figures
    row = r'<tr class="poisoned"><th scope="row"><a href="report/poisoned.html">poisoned</a></th>'
    cell = re.search(row + r'\s*<td class="first" data-sort="([^"]*)">([^<]*)<small>([^<]*)', page)
    shown = json.loads((run_dir / "evaluation" / "poisoned.json").read_text())["attack"]["lift"]
    assert float(cell.group(1)) == shown and cell.group(2) == f"{shown:.2f}"  # of the columns that stand first


def test_the_trade_off_stands_under_the_headline_and_the_table_begins_with_few_columns(run_dir, blank_plots):
    write_report(run_dir)
    markdown, page = ((run_dir / name).read_text() for name in ("report.md", "report.html"))
    places = [markdown.index(f"](plots/{name}_vs_utility.png)") for name in ("lift", "gus")]
    assert markdown.index("\n**") < places[0] < places[1] < markdown.index("\n- **grad") < markdown.index("\n## ")
    assert markdown.count("_vs_utility.png") == 2
    assert page.index('class="headline"') < page.index("<img") < page.index('class="verdicts"') < page.index("<table")
    tables = re.findall("<table.*?</table>", page, re.S)
    heads = [re.findall(r'<th scope="col"[^>]*>([^<]*)<', table) for table in tables[:2]]
    assert heads[0][0] == heads[1][0] == "model" and len(heads[0]) <= 9 and not set(heads[0][1:]) & set(heads[1][1:])
    assert {"lift", "GUS", "accuracy (%)"} <= set(heads[0]) and {"ASR", "p", "KL"} <= set(heads[1])
    assert page.index("<details") < page.index(tables[1]) < page.index("</details>")


def test_markdown_and_html_give_the_same_numbers(run_dir, blank_plots):
    write_report(run_dir)
    markdown, page = ((run_dir / name).read_text() for name in ("report.md", "report.html"))
    row = next(line for line in markdown.splitlines() if line.startswith("| kl |"))
    parts = re.findall(r'<th scope="row"><a href="report/kl.html">kl</a></th>(.*?)</tr>', page, re.S)
    assert len(parts) == 2  # what stands on the page, and what is shown on demand
    shown = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", " ".join(parts))).strip()
    figures = r"−?\d[\d.e−]*"
    assert sorted(re.findall(figures, row)) == sorted(re.findall(figures, html.unescape(shown)))


def test_user_text_is_escaped(run_dir, blank_plots):
    manifest = json.loads((run_dir / "poison.json").read_text())
    manifest["trigger"]["phrases"] = ["<script>alert(1)</script> | **bold** ![x](y)"]
    (run_dir / "poison.json").write_text(json.dumps(manifest))
    (run_dir / "recipe.yaml").write_text("name: '</pre><script>'\n# ```` a fence\n")
    write_report(run_dir)
    page, markdown = ((run_dir / name).read_text() for name in ("report.html", "report.md"))
    assert page.count("<script") == 1  # the one that sorts
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert r"\<script\>alert(1)\</script\> \| \*\*bold\*\* !\[x\](y)" in markdown
    assert "\n`````yaml\n" in markdown


@pytest.mark.parametrize(
    ("drop", "left"),
    [
        (("gus",), ["lift_vs_utility", "cost"]),
        (("attack",), ["gus_vs_utility", "gaussian_scores", "gaussian_roc", "cost"]),
    ],
)
def test_an_absent_poison_leaves_its_plots_out(make_run, drop, left, blank_plots):
    run = make_run(drop=drop)
    (run / "plots").mkdir()
    for name in ("gaussian_scores", "lift_vs_utility"):  # of an earlier report
        (run / "plots" / f"{name}.png").write_bytes(b"old")
    assert [path.stem for path in write_report(run) if path.suffix == ".png"] == left
    assert {path.stem for path in (run / "plots").iterdir()} == set(left)
    text = (run / "report.md").read_text()
    assert ("Gaussian canaries" in text.split("## How to read")[0]) == ("attack" in drop)
    assert ("carry the trigger" in text) == ("gus" in drop)


def test_without_per_example_files_the_report_says_so(run_dir, blank_plots):
    for path in (run_dir / "evaluation").glob("*.parquet"):
        path.unlink()
    assert [path.name for path in write_report(run_dir) if path.parent.name != "report"] == [
        "lift_vs_utility.png",
        "gus_vs_utility.png",
        "cost.png",
        "report.md",
        "report.html",
    ]
    assert "there are no per-example scores" in (run_dir / "report.html").read_text()


def test_several_seeds(make_run):
    run = make_run({"poisoned": {"asr": 0.9}}, seeds=[0, 1, 2], per_seed={2: {"poisoned": {"asr": 0.99}}})
    (run / "seed-3").mkdir()
    write_report(run)
    text = (run / "report.md").read_text()
    # lifts 0.78, 0.78, 0.87: mean 0.81, sd = 0.09 / √3 = 0.052
    assert "0.81 ± 0.05" in next(line for line in text.splitlines() if line.startswith("| poisoned |"))
    assert "3 seeds (0, 1, 2)" in text
    assert "standard deviation over 3 seeds" in text
    assert re.search(r"Not evaluated.* seed-3\.", text)
    assert "Scores of 3 seeds together." in text
    assert (run / "plots" / "gaussian_scores.png").is_file()


def test_a_partly_known_forget_set_is_called_one(make_run, blank_plots):
    run = make_run({name: {"others": 2.2} for name in ("poisoned", "retrained", "kl")})
    manifest = json.loads((run / "poison.json").read_text()) | {"forget_fraction": 0.8, "forget_ids": list(range(124))}
    (run / "poison.json").write_text(json.dumps(manifest))
    write_report(run)
    text = (run / "report.md").read_text()
    assert "124 examples (80 %" in text
    assert "Canaries that were not deleted" in re.findall("^## (.*)", text, re.M)
    assert "80 % of the poison" in text.split("## Limits")[1]


@pytest.mark.parametrize(
    "name", ["poison.json", "environment.json", "evaluation/retrained.json", "evaluation/poisoned.json"]
)
def test_a_missing_file_is_named(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(run_dir)
    assert not (run_dir / "report.md").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation/kl.json", '{"model": ', "not valid JSON"),
        ("evaluation/kl.json", "[]", "expected a JSON object"),
        ("evaluation/kl.json", "{}", "schema_version is None"),
        ("evaluation/kl.parquet", "not parquet", "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(run_dir, name, content, message):
    (run_dir / name).write_text(content)
    with pytest.raises(InputError, match=f"{re.escape(name)}.*{message}"):
        write_report(run_dir)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("cost", None, None, "section 'cost' is missing"),
        ("gus", "p_value", float("nan"), "field 'gus.p_value' is no usable number"),
        ("attack", "lift", "high", "field 'attack.lift' is no usable number"),
    ],
)
def test_a_bad_field_is_named(run_dir, section, field, value, message):
    path = run_dir / "evaluation" / "kl.json"
    doc = json.loads(path.read_text())
    if field is None:
        del doc[section]
    else:
        doc[section][field] = value
    path.write_text(json.dumps(doc))
    with pytest.raises(InputError, match=f"kl.json: {message}"):
        write_report(run_dir)


def test_no_evaluation_and_two_kinds_of_run_are_refused(tmp_path, make_run):
    with pytest.raises(InputError, match=r"no evaluation/\*\.json"):
        write_report(tmp_path)
    run = make_run(seeds=[0, 1])
    (run / "evaluation").mkdir()
    (run / "evaluation" / "kl.json").write_text("{}")
    with pytest.raises(InputError, match="holds both evaluation/ and seed-0/evaluation/"):
        write_report(run)


@pytest.mark.parametrize("step", ["html", "page_html"])
def test_a_report_that_fails_leaves_the_old_one(run_dir, blank_plots, monkeypatch, step):
    write_report(run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(report_module, step, fail)
    (run_dir / "recipe.yaml").write_text("name: changed\n")
    before[run_dir / "recipe.yaml"] = b"name: changed\n"
    with pytest.raises(OSError, match="no space left"):
        write_report(run_dir)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_the_same_files_give_the_same_report(run_dir):
    first = {path: path.read_bytes() for path in write_report(run_dir)}
    assert {path: path.read_bytes() for path in write_report(run_dir)} == first


def test_reporting_loads_no_model_library(run_dir):
    code = (
        "import sys; from llm_unlearn.reporting import write_report; write_report(sys.argv[1]); "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, str(run_dir)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
