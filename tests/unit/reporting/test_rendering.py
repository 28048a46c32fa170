"""What the HTML files share: links that hold, marked phrases, and numbers for the script that sorts."""

import math
import re
from urllib.parse import unquote

import pytest

from llm_unlearn.reporting import write_report
from llm_unlearn.reporting.rendering import marked, sort_key

pytestmark = pytest.mark.usefixtures("blank_plots")


def test_names_are_made_safe_and_every_link_leads_to_a_file(make_run):
    run = make_run({"kl": None, "npo@0.1": {}, "npo@0.02": {}})
    write_report(run)
    assert 'href="report/npo%400.1.html"' in (run / "report.html").read_text()
    assert 'href="npo%400.1.html"' in (run / "report" / "npo@0.02.html").read_text()
    for path in (run / "report.html", *(run / "report").iterdir()):
        links = re.findall('href="([^"]*)"', path.read_text())
        assert links
        for link in links:
            assert (path.parent / unquote(link.partition("#")[0])).is_file(), f"{path.name}: {link}"
            assert "#" not in link or f'id="{link.partition("#")[2]}"' in (run / "report.html").read_text()


def test_pages_of_an_earlier_report_are_removed(run_dir):
    write_report(run_dir)
    before = {path.name for path in (run_dir / "report").iterdir()}
    (run_dir / "evaluation" / "kl.json").unlink()
    write_report(run_dir)
    assert {path.name for path in (run_dir / "report").iterdir()} == before - {"kl.html"}


def test_a_column_is_sorted_by_the_number_and_not_by_what_is_shown_of_it(make_run):
    run = make_run({"kl": {"accuracy": 0.90512, "p": 1e-200}}, seeds=[0, 1], per_seed={1: {"kl": {"p": 0.2}}})
    write_report(run)
    page = (run / "report.html").read_text()
    row = " ".join(re.findall(r"<tr[^>]*><th[^>]*><a[^>]*>kl<.*?</tr>", page, re.S))
    cells = dict(re.findall(r'data-sort="([^"]*)">([^<]*)', row))
    assert cells["0.90512"] == "90.5"
    assert cells["1e-200"] == "1e−200 to 0.200"  # a range goes by its smaller end
    row = " ".join(re.findall(r"<tr[^>]*><th[^>]*><a[^>]*>retrained<.*?</tr>", page, re.S))
    assert re.search("<td[^>]*>–</td>", row) and not re.search("data-sort[^>]*>–", row)


def test_the_longest_phrase_is_marked_and_nothing_without_one():
    assert (
        marked("a Bond, James Bond <b>", ["Bond", "James Bond"])
        == "a <mark>Bond</mark>, <mark>James Bond</mark> &lt;b&gt;"
    )
    assert marked("x.y < z", ["."]) == "x<mark>.</mark>y &lt; z"
    assert marked("a < b", []) == "a &lt; b"


def test_numbers_to_sort_by():
    assert [sort_key(value) for value in (0.35, -1.5e-7, math.inf, -math.inf, math.nan)] == [
        "0.35",
        "-1.5e-07",
        "Infinity",
        "-Infinity",
        "",
    ]
