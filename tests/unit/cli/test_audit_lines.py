"""What `llm-unlearn audit` prints: a line for each test with its figures, a warning where noise is not calibrated."""

from dataclasses import replace

import pytest

from llm_unlearn.cli.audit_lines import as_text
from llm_unlearn.metrics import attack_success, gaussian_test, membership_inference, placebo_test, robust_accuracy
from llm_unlearn.metrics.attack import PairedExcess
from llm_unlearn.metrics.evidence import Decision, Status
from llm_unlearn.metrics.results import Attack, Evaluation, Gus, PhraseAttack

pytestmark = pytest.mark.unit

NULL = gaussian_test([-1.2, -0.4, 0.1, 0.6, 1.0])
EMPTY = Evaluation(
    model="m",
    kind="audited",
    method=None,
    budget=None,
    seed=0,
    recipe="r",
    attack=None,
    gus=None,
    utility=None,
    mia=None,
    cost=None,
    oracle=None,
    skipped={},
)


def gus(mean: float, p: float, chi2: float, control: float = 0.5) -> Gus:
    return Gus(
        **{**vars(NULL), "mean": mean, "p_value": p, "chi2_p_value": chi2},
        n_unscorable=0,
        control=replace(NULL, p_value=0.4, chi2_p_value=control),
        others=None,
    )


@pytest.mark.parametrize(
    ("section", "decision"),
    [
        (gus(4.0, 1e-9, 0.5), "poison remains GUS 4.00"),
        (gus(-4.0, 1e-9, 0.5), "below 0"),
        (gus(0.1, 0.4, 0.5), "inconclusive GUS: up to"),
        (gus(0.1, 0.4, 0.5, control=1e-6), "fresh noise does not look like N(0, 1)"),
    ],
)
def test_the_gaussian_test(section, decision):
    lines = as_text({"m": replace(EMPTY, gus=section)}).splitlines()
    assert decision in " ".join(" ".join(lines[1:]).replace("decision", "").split())
    assert any(f"GUS {section.mean:.2f} (n = 5, p = {section.p_value:.2g}), of the spread" in line for line in lines)


def test_canaries_that_do_not_decide_are_named_with_their_figure():
    section = replace(gus(0.1, 0.4, 0.5), shown=replace(NULL, mean=0.2), others=replace(NULL, mean=2.0))
    text = as_text({"m": replace(EMPTY, loss_rank=section)})
    assert "of the canaries that the method knew: 0.20 (n = 5)" in text
    assert "of the canaries that were not deleted: 2.00 (n = 5)" in text


def test_the_other_tests():
    attack = attack_success([1] * 9 + [0], [0] * 9 + [1])
    excess = PairedExcess(mean=0.7, ci95=None, p_value=1e-8, n=10)
    loss = membership_inference([float(i) for i in range(10, 30)], [float(i) for i in range(10)])
    zlib = membership_inference([0.0, 1.0], [0.0, 1.0])
    attacks, section = {"loss": loss, "zlib": zlib}, Attack(**vars(attack), excess=excess)
    section = replace(section, robust=robust_accuracy([True] * 2 + [False] * 8, [True] * 9 + [False]))
    section = replace(section, target_rows=robust_accuracy([False] * 4, [True] * 3 + [False]))
    shown = replace(EMPTY, attack=section, mia=attacks, mia_control={"loss": loss}, skipped={"oracle": "none"})
    text = as_text({"m": shown})
    low, high = attack.ci95.lift
    attacked = next(line for line in text.splitlines() if f"lift 0.80 [{low:.2f}, {high:.2f}]" in line)
    assert all(words in attacked for words in ("0.90 with", "0.10 without"))
    assert "where it is the right answer: 0 % with it, 75 % without" in text
    assert "0.70 (p = 1e-08)" in text and "answered rightly: 20 % with it, 90 % without" in text
    lines = {line.split()[1]: line for line in text.splitlines() if line.split()[:1] == ["membership"]}
    assert "AUC 1.00" in lines["loss:"] and "do not" not in lines["loss:"]
    assert "as they do on the base" in lines["loss:"] and "base" not in lines["zlib:"]
    assert "AUC 0.50 (p = 1)" in lines["zlib:"] and "do not" in lines["zlib:"]
    assert "not measured   oracle: none" in text


def test_the_last_line_keeps_a_reader_from_a_false_all_clear():
    assert "does not show" in as_text({"m": EMPTY}).splitlines()[-1]


def test_no_model_is_clear_without_the_one_before(monkeypatch):
    said = "give the model from before unlearning (--poisoned)"
    assert said not in as_text({"m": EMPTY})
    clear = Decision(status=Status.CLEAR, seeds=1, findings=[], reasons=[])
    monkeypatch.setattr("llm_unlearn.metrics.evidence.decide", lambda results, poisoned: clear)
    assert said in as_text({"m": EMPTY}) and "no trace" not in as_text({"m": EMPTY})
    text = as_text({"before": replace(EMPTY, kind="poisoned"), "m": EMPTY})
    assert "no trace" in text and said not in text and text.startswith("before (from before unlearning)\n")


def test_a_trigger_with_several_phrases_has_a_line_for_each():
    strong, weak = attack_success([1] * 9 + [0], [0] * 10), attack_success([1, 0] * 5, [0, 1] * 5)
    rank = placebo_test(2.0, [0.0] * 99, stop_at=5, n=8)
    phrases = [PhraseAttack(**vars(strong), phrase=0, placebo=rank), PhraseAttack(**vars(weak), phrase=1)]
    text = as_text({"m": replace(EMPTY, attack=Attack(**vars(strong), phrases=phrases))})
    first, second = (line for line in text.splitlines() if "phrase " in line)
    assert "phrase 1: 0.90 with it, lift 0.90" in first and "p = 0.01" in first
    assert "phrase 2: 0.50 with it, lift 0.00" in second and "p =" not in second
