"""`.ci/run` is the one list of steps: the workflow runs them all, on every Python that the project says it supports."""

import re
import subprocess
import tomllib

import pytest
import yaml
from pages import ROOT

pytestmark = pytest.mark.unit

GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCRIPT = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
WORKFLOW = yaml.load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"), yaml.BaseLoader)  # `on` is no bool
JOBS = WORKFLOW["jobs"]
FORMS = sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE" / "config.yml"})


def steps_of_the_workflow() -> set[str]:
    """The steps of .ci/run that the jobs call; a step of a matrix is each of its values."""
    called = set()
    for job in JOBS.values():
        for name in re.findall(
            r"\.ci/run (\S+|\$\{\{.*?\}\})(?:\n|$)", "\n".join(s.get("run", "") for s in job["steps"])
        ):
            called |= {entry["step"] for entry in job["strategy"]["matrix"]["include"]} if "matrix" in name else {name}
    return called


def test_the_workflow_runs_every_step_and_no_other():
    (default,) = re.findall(r"^ +set -- (.+)$", SCRIPT, flags=re.M)
    functions = set(re.findall(r"^(\w+)\(\) \{$", SCRIPT, flags=re.M))
    assert set(default.split()) < functions
    assert steps_of_the_workflow() == functions


def test_the_tests_run_on_every_supported_python():
    versions = [entry["python"] for entry in JOBS["tests"]["strategy"]["matrix"]["include"]]
    assert [f"Programming Language :: Python :: {version}" for version in versions] == [
        line for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)
    ]


def test_the_workflow_can_write_nothing_and_no_job_runs_for_ever():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert set(WORKFLOW["on"]) == {"push", "pull_request"}
    assert all(int(job["timeout-minutes"]) <= 120 for job in JOBS.values())


def test_an_unknown_step_is_refused_before_anything_is_made():
    run = subprocess.run([ROOT / ".ci" / "run", "lint", "linte"], capture_output=True, text=True, timeout=10)
    assert run.returncode == 2 and "linte" in run.stderr and "coverage" in run.stderr and not run.stdout


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_what_an_extra_asks_for_is_pinned(extra):
    def plain(name: str) -> str:
        return re.split(r"[\[<>=!~; ]", name)[0].lower().replace("_", "-")

    pins = {plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {plain(name) for name in PROJECT["optional-dependencies"][extra]} <= pins


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_github_takes(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert len({field["id"] for field in fields}) == len(fields) > 0
    for field in fields:
        assert field["attributes"]["label"]
        assert (field["type"] in {"dropdown", "checkboxes"}) == ("options" in field["attributes"])
