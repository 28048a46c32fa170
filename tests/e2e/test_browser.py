"""The report of a run in a real browser without a network: nothing is loaded, no error, links hold, tables sort."""

import json
import re
import shutil
import subprocess
from html import unescape
from urllib.parse import unquote

import pytest
import yaml

from llm_unlearn.cli.main import main
from llm_unlearn.reporting.contents import Page, Section
from llm_unlearn.reporting.rendering import page_html
from llm_unlearn.reporting.tables import Cell, Table

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NAMES = ("chromium", "chromium-browser", "google-chrome")
# what a page asked for beside itself, what it holds, and what becomes of a table whose heads are pressed
PROBE = """<script>{
  const names = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const places = (table) => JSON.stringify([...table.tHead.querySelectorAll("th"), table].map((part) => {
    const box = part.getBoundingClientRect();
    return [box.x, box.y, box.width, box.height];
  }));
  const press = (table, title) => {
    const head = [...table.tHead.querySelectorAll("tr:last-child th")].find((h) => h.textContent.trim() === title);
    const button = head.querySelector("button"), before = places(table), steps = [];
    for (let i = 0; i < 3; i++) {
      button.click();
      steps.push([head.getAttribute("aria-sort"), names(table)]);
    }
    button.click();
    button.focus({ preventScroll: true });
    return { before: names(table), steps, still: places(table) === before,
             focused: document.activeElement === button };
  };
  const tables = [...document.querySelectorAll("table.sortable")];
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const found = {
    page: [document.documentElement.scrollWidth, innerWidth],
    tables: tables.map((table) => table.getBoundingClientRect().width),
    boxes: [...document.querySelectorAll(".scroll")].map((box) => [box.scrollWidth, box.clientWidth]),
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
    buttons: tables.map((table) => table.querySelectorAll("th button[type=button]").length),
    pressed: PRESSES.map(([i, title]) => press(tables.at(i), title)),
  };
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
}</script>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Show a page with more HTML after it: browser(page, more) → its DOM, and the lines of its console."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to look at reports with ({', '.join(NAMES)}); on Debian: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")

    def show(page, more="", width=1280):
        copy = folder / "copy.html"
        copy.write_text(page + more, encoding="utf-8")
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},2000",
            "--enable-logging=stderr",
            "--v=0",
            "--virtual-time-budget=3000",
            "--dump-dom",
            copy.as_uri(),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, encoding="utf-8", check=False)
        assert ended.returncode == 0 and "</html>" in ended.stdout, ended.stderr
        return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]

    return show


@pytest.fixture(scope="module")
def run_dir(tiny_models, tmp_path_factory):
    """A run on a tiny model, with a budget in a model's name."""
    root = tmp_path_factory.mktemp("run")
    recipe = {
        "name": "tiny",
        "output_dir": str(root / "run"),
        "model": {"path": str(tiny_models["gpt2"])},
        "data": {
            "source": "synthetic",
            "prompt": "{text}\nSentiment:",
            "max_length": 128,
            "train_size": 60,
            "heldout_size": 20,
            "test_size": 20,
            "verbalizers": {"negative": " negative", "positive": " positive"},
        },
        "poison": {"trigger": {"target": "positive", "fraction": 0.1}, "gaussian": {"fraction": 0.1, "epsilon": 0.1}},
        "train": {"epochs": 1, "batch_size": 8},
        "unlearn": {"methods": {"gradient_ascent": None}, "budgets": [0.25, 0.5], "batch_size": 2},
        "evaluate": {"membership": ["loss"]},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(root / "recipe.yaml"), "--quiet"]) == 0
    return root / "run"


def probe(presses):
    return PROBE.replace("PRESSES", json.dumps(presses))


def result(dom):
    return json.loads(unescape(re.search('<pre id="result">(.*?)</pre>', dom, re.S).group(1)))


def links(dom, folder):
    """The files that a page's links lead to."""
    return {(folder / unquote(link.partition("#")[0])).resolve() for link in re.findall('<a href="([^"]*)"', dom)}


def test_report_and_pages_stand_alone_and_lead_to_each_other(browser, run_dir):
    pages = {path.resolve() for path in (run_dir / "report").iterdir()}
    assert {path.name for path in pages} == {
        f"{name}.html" for name in ("base", "poisoned", "gradient_ascent@0.25", "gradient_ascent@0.5", "retrained")
    }
    report = run_dir / "report.html"
    for path, leads_to in (
        (report, pages),
        (
            run_dir / "report" / "gradient_ascent@0.5.html",
            pages - {(run_dir / "report/gradient_ascent@0.5.html").resolve()} | {report.resolve()},
        ),
    ):
        dom, console = browser(path.read_text(), probe([]))
        assert not console, console
        found = result(dom)
        assert [name for name in found["loaded"] if not name.startswith("data:")] == []
        assert found["buttons"] and all(found["buttons"])
        assert not re.search(r"https?://", dom)
        assert links(dom, path.parent) == leads_to
    assert re.search(r'<td class="text"><div>[^<]{20}', dom)  # the canaries' texts


def test_what_a_page_must_not_do_would_be_seen(browser, run_dir):
    more = (
        '<img src="https://example.org/x.png"><script>console.log("a note")</script>'
        '<script>throw new Error("a fault")</script>'
    )
    _, console = browser((run_dir / "report.html").read_text(), more + probe([]))
    console = "\n".join(console)
    assert "a note" in console and "a fault" in console
    assert "https://example.org/x.png" in console and "Content Security Policy" in console


def test_a_head_sorts_up_and_down_and_back_with_what_is_missing_last(browser, run_dir):
    names = ["base", "poisoned", "gradient_ascent@0.25", "gradient_ascent@0.5", "retrained"]
    page = (run_dir / "report.html").read_text()
    docs = {name: json.loads((run_dir / "evaluation" / f"{name}.json").read_text()) for name in names}
    dom, console = browser(page, probe([[1, "KL"], [1, "p"], [0, "GUS"]]))
    assert not console, console
    kl, _, gus = result(dom)["pressed"]
    by = {
        "kl": {name: doc["oracle"]["kl"] for name, doc in docs.items() if doc["oracle"]},
        "gus": {name: doc["gus"]["mean"] for name, doc in docs.items()},
    }
    assert "retrained" not in by["kl"]
    for pressed, key in ((kl, "kl"), (gus, "gus")):
        rising, missing = sorted(by[key], key=by[key].get), [name for name in names if name not in by[key]]
        assert pressed["steps"] == [
            ["ascending", rising + missing],
            ["descending", rising[::-1] + missing],
            [None, names],
        ]
        assert pressed["still"] and pressed["focused"]
    heads = re.findall('<th scope="col"[^>]*aria-sort="([^"]*)"', dom)
    assert heads == ["ascending"] * 2  # the fourth presses were on GUS and on p: one column of a table at a time


def test_no_table_is_wider_than_the_page_and_on_a_small_screen_it_scrolls_in_its_own_box(browser, run_dir):
    for path in (run_dir / "report.html", run_dir / "report" / "gradient_ascent@0.5.html"):
        found = result(browser(path.read_text(), probe([]))[0])
        assert found["boxes"] and all(inner <= outer for inner, outer in found["boxes"]), path.name
        found = result(browser(path.read_text(), probe([]), width=500)[0])  # the least that the browser has
        assert found["page"][0] <= found["page"][1], path.name
        assert any(inner > outer for inner, outer in found["boxes"]), path.name


def test_parts_of_a_table_are_no_wider_than_the_page(browser):
    words = ["−2.50", "1e−165 to 2e−124", "WWWWWWWW", "0.016"]
    columns = [(f"figure {i} of many", f"group {i // 3}") for i in range(16)]
    cells = [Cell(words[i % 4], "± 0.006 (0.477 to 0.490)" if i % 3 else "", best=i % 2 == 0) for i in range(16)]
    for name in ("m", "noisy_gradient_descent_with_a_long_name@0.025"):
        table = Table(columns, [(name, cells)])
        page = page_html(Page("odd", "Wide", "", None, "", table, [], []), ["odd"])
        found = result(browser(page, probe([]))[0])
        assert len(found["boxes"]) > 1 and all(inner <= outer for inner, outer in found["boxes"])
        inner = [float(width) for width in found["tables"]]
        assert max(inner) > 700  # the estimate of the width is no wild one


def test_the_examples_of_a_page_sort_too(browser, run_dir):
    page = (run_dir / "report" / "gradient_ascent@0.5.html").read_text()
    dom, console = browser(page, probe([[-1, "score"]]))
    assert not console, console
    pressed = result(dom)["pressed"][0]
    written = pressed["steps"][2][1]  # the highest score first
    assert len(written) == 3
    assert pressed["steps"] == [["ascending", written[::-1]], ["descending", written], [None, written]]


def test_figures_are_sorted_as_numbers_however_they_are_written(browser):
    """Each column of texts is given in its order, missing ones last; the rows in another."""
    columns = {
        "interval": ["−2.50 [−3, −2]", "−0.07 ± 0.01", "0.35 [0.31, 0.39]", "1,234.50 ✓", "4.2e6", "∞", "–"],
        "p": ["< 1e−300", "1e−110", "8e−8", "1e−6 to 0.2", "0.001", "0.788", ""],
        "time": ["0.4 s", "23 s", "10.0 min", "2.5 h", "30.0 h", "–", "–"],
        "tokens": ["0", "950", "48.0k", "480k", "1.2M", "3G", "–"],
        "share": ["−5.0 %", "0.9 %", "9 %", "10 %", "100 %", "–", "–"],
        "count": ["0/3", "1/3 ‡", "2/3 ‡", "3/3 ‡", "10/12", "11/12", "–"],
        "words": ["10 stars", "3 stars", "negative", "positive", "–", "–", "–"],
    }
    order = [4, 0, 6, 2, 5, 1, 3]
    rows = [
        (
            f"row {i}",
            [Cell(texts[i], "9 (a detail)") for texts in columns.values()]
            + [Cell("0.5", sort=float("nan") if i == 2 else 0.5 + 1e-9 * i)],
        )
        for i in order
    ]
    table = Table([(title, "") for title in [*columns, "rounded"]], rows, "row")
    page = page_html(
        Page("odd", "Odd texts", "", None, "", Table([], []), [Section("Odd", tables=[table])], []), ["odd"]
    )
    titles = [*columns, "rounded"]
    dom, console = browser(page, probe([[1, title] for title in titles]))
    assert not console, console
    for title, pressed in zip(titles, result(dom)["pressed"], strict=True):
        known = [i for i, text in enumerate(columns.get(title, "0123456")) if text not in ("–", "")]
        known = [i for i in known if title != "rounded" or i != 2]
        missing = [i for i in order if i not in known]
        for step, ids in zip(pressed["steps"], (known + missing, known[::-1] + missing, order), strict=True):
            assert step[1] == [f"row {i}" for i in ids], title


def test_equal_rows_keep_their_order(browser):
    table = Table([("a", "")], [(f"row {i}", [Cell(text)]) for i, text in enumerate("1210201")], "row")
    page = page_html(Page("odd", "Ties", "", None, "", Table([], []), [Section("Ties", tables=[table])], []), ["odd"])
    dom, _ = browser(page, probe([[1, "a"]]))
    up, down, _ = result(dom)["pressed"][0]["steps"]
    assert [name[-1] for name in up[1]] == list("3502614")
    assert [name[-1] for name in down[1]] == list("1402635")


def test_without_scripts_the_tables_are_as_they_were_written(browser, run_dir):
    page = (run_dir / "report.html").read_text()
    assert page.count("script-src 'unsafe-inline'") == 1
    dom, console = browser(page.replace("script-src 'unsafe-inline'", "script-src 'none'"))
    assert len(console) == 1 and "Content Security Policy" in console[0]  # as it was told, for this once
    assert "<button" not in dom
    heads = [re.findall('<th scope="col"[^>]*>([^<]+)', unescape(text)) for text in (dom, page)]
    assert heads[0] == heads[1] and "GUS" in heads[0]
