"""The report's verdicts: the decision in words, what counts as a cost, what keeps a run from calling a model free."""

import json
from dataclasses import replace

import pytest

from llm_unlearn.metrics.evidence import Decision, Status, decide
from llm_unlearn.metrics.findings import Finding
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.reporting import verdicts
from llm_unlearn.reporting.decision_words import because
from llm_unlearn.reporting.report import compose
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.verdicts import headline, judge, obstacles, warnings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("figures", "status", "words"),
    [
        ({"gus": 0.37}, Status.REMAINS, ["GUS 0.37 (p = 9e−4)"]),
        ({"gus": 0.35}, Status.CLEAR, []),
        ({"asr": 0.55}, Status.REMAINS, ["trigger lift 0.38 [0.31, 0.45] above the retrained", "0.16 is tolerated"]),
        ({"asr": 0.36}, Status.INCONCLUSIVE, ["attack lift: up to 0.26 may be there (n = 250)"]),
        ({"gus": -0.7}, Status.REMAINS, ["below 0"]),
        ({"gus": 1.0, "asr": 0.7}, Status.REMAINS, ["GUS 1.00", "trigger lift 0.53"]),
        ({"control_p": 1e-5}, Status.INCONCLUSIVE, ["fresh noise"]),
    ],
)
def test_verdict_at_its_limits(make_run, figures, status, words):
    verdict = judge(read_results(make_run({"kl": figures})), "kl")
    assert verdict.status == status and verdict.remains == (status == Status.REMAINS)
    assert all(text in verdict.because for text in words) and bool(verdict.because) == bool(words)


def test_a_report_decides_on_each_model_once(make_run, blank_plots, monkeypatch):
    decided = []

    def counted(results, *others):
        decided.append(results[0].model)
        return decide(results, *others)

    monkeypatch.setattr(verdicts, "decide", counted)
    results = read_results(make_run())
    compose(results)
    assert sorted(decided) == sorted(name for name in results.names if name != "base")
    assert not replace(results, unfinished=[]).decisions  # other results are decided on anew


def test_every_test_that_rejects_is_said_but_a_spread_only_where_its_mean_does_not_tell():
    def finding(test):
        return Finding(question="noise", test=test, effect=1.0, n=9, p_value=1e-9, rejects=True)

    tests = ("gus", "spread of gus", "spread of loss rank", "placebo")
    decision = Decision(status=Status.REMAINS, seeds=1, findings=list(map(finding, tests)), reasons=[])
    assert [part.split(" (")[0].split(",")[0] for part in because(decision)] == [
        "GUS 1.00",
        "mean square of loss rank 1.00",
        "the trigger does more than placebos do",
    ]


def test_a_clear_verdict_says_down_to_what_and_in_how_many_trainings(make_run):
    verdict = judge(read_results(make_run()), "kl")
    said = "no trace down to GUS 0.46 (n = 80), loss rank 0.46 (n = 80), trigger lift 0.09 (n = 250); 1 seed"
    untried = "; not tested after clean steps or where the target is the right answer"
    assert verdict.good and verdict.judgement == said + untried
    assert replace(verdict, attack="target").judgement == f"{said}; not tested after clean steps".replace(
        "trigger", "target"
    )
    found = verdict.decision.findings
    later = replace(found[0], after=30)
    turned = replace(next(f for f in found if f.test == "lift"), test="target lost", detectable=None)
    for more, rest in (([later], untried.replace("after clean steps or ", "")), ([later, turned], "")):
        tried = replace(verdict.decision, findings=[*found, *more])
        assert replace(verdict, decision=tried).judgement == said + rest


def test_a_clear_verdict_says_what_is_tolerated_and_what_few_rows_may_hide(make_run):
    verdict = judge(read_results(make_run()), "kl")
    rest = [f for f in verdict.decision.findings if f.test != "lift"]
    lift = next(f for f in verdict.decision.findings if f.test == "lift")
    turned = replace(lift, test="target lost", detectable=None, interval=Interval(-0.01, 0.1))

    def said(*findings: Finding) -> str:
        tried = replace(verdict.decision, findings=[*rest, replace(rest[0], after=30), *findings])
        return replace(verdict, decision=tried).judgement.partition("; 1 seed")[2]

    assert said(lift, turned) == ""
    few = replace(turned, interval=Interval(-0.3, 0.62), n=3)
    assert said(lift, few) == "; where the target is the right answer, up to 0.62 may be lost (n = 3)"
    for effect, low, words in (  # δ is 0.16
        (0.09, 0.01, "; trigger lift 0.09 is there, which is tolerated"),
        (0.09, -0.01, ""),
        (0.08, 0.01, ""),
    ):
        assert said(replace(lift, effect=effect, interval=Interval(low, 0.15)), turned) == words


def test_a_clear_verdict_of_three_trainings_goes_down_further(make_run):
    three = judge(read_results(make_run(seeds=[0, 1, 2])), "kl").judgement
    assert "GUS 0.26 (n = 240), loss rank 0.26 (n = 240)" in three and "; 3 seeds;" in three


@pytest.mark.parametrize(("accuracy", "lost"), [(0.87, "5.0"), (0.871, None)])
def test_five_points_of_accuracy_are_flagged(make_run, accuracy, lost):
    verdict = judge(read_results(make_run({"kl": {"accuracy": accuracy}})), "kl")
    assert verdict.lost_points.mean == pytest.approx(100 * (0.92 - accuracy))
    assert (lost in verdict.price) if lost else (verdict.price == "")
    assert verdict.good == (lost is None) and verdict.look == ("doubtful" if lost else "good")


def test_headline_counts_poison_and_cost(run_dir):
    verdicts = [judge(read_results(run_dir), name) for name in read_results(run_dir).methods]
    assert headline(verdicts, []).startswith("2 of 4 ") and "; 2 lose 5 " in headline(verdicts, [])
    assert headline(verdicts, []).endswith(": kl.") and headline(verdicts[:1], []).endswith(": none.")
    one = [verdict for verdict in verdicts if verdict.remains][:1]
    assert headline(one, []).startswith("1 of 1 unlearned models holds ")


def test_no_accuracy_is_lost_where_answers_are_no_exact_texts(make_run):
    """On TOFU all models are right on 0 %, also one whose model utility is gone."""
    results = read_results(make_run({"kl": {"accuracy": 0.4}}))
    for models in (run.models for run in results.runs):
        models.update({name: replace(model, benchmark=object()) for name, model in models.items()})
    verdicts = [judge(results, name) for name in results.methods]
    assert all(verdict.lost_points is None and verdict.price == "" for verdict in verdicts)
    said = headline(verdicts, [])
    assert "lose" not in said and "no accuracy was measured" in said


def test_weak_traces_in_every_seed_are_one_finding(make_run):
    root = make_run({"kl": {"gus": 0.25}}, seeds=[0, 1, 2])
    verdict = judge(read_results(root), "kl")
    assert verdict.status == Status.REMAINS and "GUS 0.25 (p = 1e−4)" in verdict.because


def changed(root, model, **utility):
    path = root / "evaluation" / f"{model}.json"
    doc = json.loads(path.read_text())
    doc["utility"] |= utility
    path.write_text(json.dumps(doc))


@pytest.mark.parametrize(
    ("changes", "utility", "words"),
    [
        ({"poisoned": {"gus": 0.1}}, {}, "did not take (Gaussian canaries)"),
        ({"poisoned": {"asr": 0.12}}, {}, "did not take (trigger)"),
        ({"retrained": {"gus": 1.0}}, {}, "fails the same tests"),
        ({}, {"top_label": 0.91}, "the task was not learned"),
    ],
)
def test_the_headline_never_says_what_a_warning_takes_back(make_run, changes, utility, words):
    root = make_run(changes)
    changed(root, "retrained", **utility)
    results = read_results(root)
    (obstacle,) = obstacles(results)
    text = headline([judge(results, name) for name in results.methods], [obstacle])
    assert words in obstacle and obstacle in text and "no trace" not in text and "kl" not in text


@pytest.mark.parametrize(("rows", "guessed"), [(1, False), (2, False), (3, True)])
def test_answers_that_hardly_repeat_are_no_guess_of_a_model_that_is_never_right(run_dir, rows, guessed):
    """As of long ones that are generated, word by word the same as the row's."""
    n = json.loads((run_dir / "evaluation" / "retrained.json").read_text())["utility"]["n"]
    changed(run_dir, "retrained", accuracy=0.0, ci95=[0.0, 0.001], top_label=rows / n)
    assert bool(obstacles(read_results(run_dir))) == guessed


def test_a_model_that_says_the_same_to_everything_is_never_good(run_dir):
    assert judge(read_results(run_dir), "kl").good and obstacles(read_results(run_dir)) == []
    changed(run_dir, "kl", top_answer=0.99, top_label=0.6)
    verdict = judge(read_results(run_dir), "kl")
    assert not verdict.good and "one answer to everything" in verdict.judgement
    changed(run_dir, "kl", top_answer=0.99, top_label=0.985)  # the rows themselves have one label
    assert judge(read_results(run_dir), "kl").good


def test_no_warning_for_a_sound_run(run_dir):
    assert warnings(read_results(run_dir)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"poisoned": {"gus": 0.1}}, ("did not take", "Gaussian canaries")),
        ({"poisoned": {"asr": 0.12}}, ("did not take", "trigger")),
        ({"retrained": {"gus": 1.0}}, ("retrained model", "GUS 1.00")),
        ({"retrained": {"asr": 0.50}}, ("retrained model", "trigger lift", "0.39")),
        ({"kl": {"control_p": 1e-5}}, ("N(0, 1)", ": kl.")),
        ({"poisoned": {"clean": 0.42}}, ("42", "11")),
    ],
)
def test_what_undermines_the_verdicts_is_said(make_run, changes, words):
    (text,) = warnings(read_results(make_run(changes)))
    assert all(word in text for word in words)
