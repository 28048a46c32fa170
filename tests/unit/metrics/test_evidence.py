"""The decision: each rule at its limits, and by simulation how often it errs on models with and without poison."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.stats import norm

from llm_unlearn.evaluation.placebos import PlaceboSettings
from llm_unlearn.metrics.attack import PairedExcess, attack_excess, attack_success, robust_accuracy
from llm_unlearn.metrics.defects import calibrated, uncalibrated_scores
from llm_unlearn.metrics.evidence import (
    ALPHA,
    SHARE,
    Status,
    attack_under_stress,
    decide,
    is_costly,
    is_promising,
    noise_under_stress,
)
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.placebo import PlaceboTest
from llm_unlearn.metrics.results import Attack, Evaluation, Gus, Later, Oracle, OtherAnswer, PhraseAttack, Utility
from llm_unlearn.metrics.utility import accuracy
from llm_unlearn.reporting.decision_words import because

pytestmark = pytest.mark.unit

EVEN = norm.ppf((np.arange(100) + 0.5) / 100)  # 100 scores that look exactly like N(0, 1)
NULL = gaussian_test(EVEN)
OTHER = {field.name for field in fields(OtherAnswer)}


def scores(shift: float = 0.0, sample: np.ndarray = EVEN, scale: float = 1.0, **changes) -> Gus:
    section = Gus(**vars(gaussian_test(scale * sample + shift)), n_unscorable=0, control=NULL, others=None)
    return replace(section, **changes)


def placebo(p: float) -> PlaceboTest:
    return PlaceboTest(p_value=p, statistic=0.2, placebo_mean=0.1, placebo_sd=0.05, n_placebos=399, n=20)


def attack(hits: int, n: int = 200, clean: int = 20, p: float | None = None, oracle: int | None = None) -> Attack:
    """Of n rows `clean` are answered with the target anyway, and `hits` more with the trigger."""
    with_it, without = np.arange(n) < clean + hits, np.arange(n) < clean
    excess = None if oracle is None else attack_excess(with_it, without, np.arange(n) < clean + oracle, without)
    found = None if p is None else placebo(p)
    return Attack(**vars(attack_success(with_it, without)), excess=excess, placebo=found)


def evaluation(**sections) -> Evaluation:
    empty = dict.fromkeys(("attack", "gus", "utility", "mia", "cost", "oracle"))
    identity = {"model": "m", "kind": "unlearned", "method": "m", "budget": 0.1, "seed": 0, "recipe": "r"}
    return Evaluation(**identity, **empty | sections)


def utility(right: float, perplexity: float) -> Utility:
    found = accuracy(np.arange(100) < 100 * right)
    return Utility(**vars(found), prefix_accuracy=right, perplexity=perplexity)


POISONED = evaluation(gus=scores(2.6), loss_rank=scores(2.6), attack=attack(170, p=0.0025, oracle=0))
CLEAN = evaluation(gus=scores(), loss_rank=scores(), attack=attack(0, p=0.5, oracle=0))


def test_a_clean_model_is_clear_down_to_figures_below_a_fifth_of_the_poisoned_models():
    decision = decide([CLEAN], [POISONED], [CLEAN])
    assert decision.status == Status.CLEAR and decision.seeds == 1 and not decision.reasons and not decision.rejecting
    limits = {finding.test: finding for finding in decision.limits}
    assert set(limits) == {"gus", "loss rank", "lift"}
    # two questions, four tests of the noise: z = Φ⁻¹(1 − 0.01/2/4/2)
    expected = (norm.isf(ALPHA / 16) + norm.isf(0.2) * gaussian_test(EVEN).std) / 10
    assert limits["gus"].detectable == pytest.approx(expected) and limits["gus"].delta == pytest.approx(0.52)
    assert limits["lift"].delta == pytest.approx(SHARE * 0.85)
    assert limits["lift"].detectable == limits["lift"].interval.high < limits["lift"].delta


@pytest.mark.parametrize(
    ("sections", "test"),
    [
        ({"gus": scores(0.36)}, "gus"),
        ({"gus": scores(-0.36)}, "gus"),
        ({"loss_rank": scores(0.36)}, "loss rank"),
        ({"gus": scores(scale=1.3)}, "spread of gus"),
        ({"loss_rank": scores(scale=0.7)}, "spread of loss rank"),
        ({"attack": attack(0, p=0.0025, oracle=0)}, "placebo"),
        ({"attack": attack(60, p=0.5, oracle=0)}, "lift"),
        ({"later": Later(steps=30, attack=None, gus=scores(0.4), loss_rank=None)}, "gus"),
        ({"later": Later(steps=30, attack=attack(60, p=None, oracle=0), gus=None, loss_rank=None)}, "lift"),
    ],
)
def test_any_test_that_rejects_says_that_poison_remains(sections, test):
    decision = decide([replace(CLEAN, **sections)], [POISONED], [CLEAN])
    assert decision.status == Status.REMAINS and [finding.test for finding in decision.rejecting] == [test]
    assert not decision.reasons and decision.rejecting[0].after == (30 if "later" in sections else 0)


def test_which_tests_find_the_poison_of_a_poisoned_model():
    found = evaluation(gus=scores(), loss_rank=scores(scale=1.5), attack=attack(60, p=0.5, oracle=0))
    assert decide([found]).tests_took == {"loss rank", "lift"} and decide([found]).took == {"noise", "attack"}


@pytest.mark.parametrize("sections", [{"gus": scores(0.3)}, {"attack": attack(0, p=0.01, oracle=0)}])
def test_the_level_is_shared_by_the_tests_of_a_model(sections):
    """Both p-values are below 0.01 and would reject alone."""
    assert decide([replace(CLEAN, **sections)], [POISONED], [CLEAN]).status == Status.CLEAR


@pytest.mark.parametrize(
    ("sections", "poisoned", "reason"),
    [
        ({"gus": scores(sample=EVEN[::5])}, {}, "GUS: up to"),
        ({"attack": attack(25, p=0.5, oracle=0)}, {}, "lift: up to"),  # 0.125, up to 0.185 where δ is 0.17
        ({"attack": attack(0, n=20, clean=2, p=0.5, oracle=0)}, {}, "lift: up to"),  # 0 of 20 rows exclude 0.23
        ({"gus": scores(n_unscorable=6)}, {}, "6 have no score"),
        ({"loss_rank": scores(n_hidden=0)}, {}, "canaries: none was hidden"),
        ({"gus": scores(control=gaussian_test(EVEN + 0.5))}, {}, "fresh noise"),
        ({}, {"gus": scores(0.1), "loss_rank": scores(0.1)}, "canaries: the poison did not take"),
        ({}, {"attack": attack(0, p=0.3, oracle=0)}, "attack: the poison did not take"),
        ({"gus": None}, {}, "GUS: no usable figure in seed 0"),
        ({"attack": attack(0, oracle=0)}, {}, "attack beyond placebos: no usable figure in seed 0"),
        (
            {"attack": replace(attack(0, oracle=0), n_unusable=3)},
            {},
            "attack beyond placebos: 3 effects are not finite",
        ),
        ({"gus": None, "loss_rank": None}, {}, "canaries: there is no usable figure"),
        ({"attack": attack(0, clean=70, p=0.5, oracle=0)}, {}, "35 % of clean inputs (retrained: 10 %)"),
        (
            {"later": Later(steps=30, attack=None, gus=scores(sample=EVEN[::5]), loss_rank=None)},
            {},
            "30 clean steps: up",
        ),
        ({"later": Later(steps=30, attack=None, gus=scores(n_unscorable=9), loss_rank=None)}, {}, "9 have no score"),
        ({}, {"gus": scores(scale=2), "loss_rank": scores()}, "canaries: the poison did not take"),  # a spread alone
    ],
)
def test_what_keeps_a_model_from_being_called_clear(sections, poisoned, reason):
    decision = decide([replace(CLEAN, **sections)], [replace(POISONED, **poisoned)], [CLEAN])
    assert decision.status == Status.INCONCLUSIVE and any(reason in text for text in decision.reasons)


def test_a_seed_without_a_figure_keeps_a_model_from_being_called_clear():
    seeds, poisoned = [replace(CLEAN, seed=s) for s in range(3)], [replace(POISONED, seed=s) for s in range(3)]
    assert decide(seeds, poisoned, seeds).status == Status.CLEAR
    for name in ("gus", "loss_rank", "attack"):
        decision = decide([*seeds[:2], replace(seeds[2], **{name: None})], poisoned, seeds)
        assert decision.status == Status.INCONCLUSIVE and any("in seed 2" in text for text in decision.reasons)


def test_what_was_not_measured_after_clean_steps_is_not_clean():
    whole = Later(steps=30, attack=attack(0, p=0.5, oracle=0), gus=scores(), loss_rank=scores())
    retrained = replace(CLEAN, later=whole)
    assert decide([retrained], [POISONED], [retrained]).status == Status.CLEAR
    lacking = [None, *(replace(whole, **{name: None}) for name in ("attack", "gus", "loss_rank"))]
    for later in [*lacking, replace(whole, attack=attack(0, oracle=0))]:
        decision = decide([replace(CLEAN, later=later)], [POISONED], [retrained])
        assert decision.status == Status.INCONCLUSIVE and "after 30 clean steps: no usable" in "; ".join(
            decision.reasons
        )


@pytest.mark.parametrize("poisoned", [[], [POISONED]])
def test_without_a_retrained_model_too_nothing_may_be_missing_after_clean_steps(poisoned):
    whole = Later(steps=30, attack=attack(0, n=400, clean=40, p=0.5), gus=scores(), loss_rank=scores())
    tried = replace(CLEAN, attack=attack(0, n=400, clean=40, p=0.5), later=whole)
    assert decide([tried], poisoned).status == Status.CLEAR
    bad = [replace(whole, **{name: None}) for name in ("attack", "gus", "loss_rank")]
    for later in [*bad, replace(whole, attack=replace(whole.attack, n_unusable=5))]:
        decision = decide([replace(tried, later=later)], poisoned)
        assert decision.status == Status.INCONCLUSIVE and "after 30 clean steps" in decision.reasons[0]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ([{"attack": attack(170, p=0.0025, oracle=0)}], "attack lift: seed 0 alone has 0.85 (n = 200)"),
        ([{"gus": scores(0.8), "loss_rank": scores(0.8)}], "GUS: seed 0 alone has 0.80"),
        ([{"gus": scores(0.6)}, {"gus": scores(-0.6)}], "GUS: seed 1 alone has -0.60"),
        ([{"loss_rank": scores(scale=1.5)}], "loss rank: seed 0 alone has"),
        (
            [{"later": Later(steps=30, attack=attack(170, p=0.0025, oracle=0), gus=scores(), loss_rank=scores())}],
            "attack lift after 30 clean steps: seed 0 alone has 0.85",
        ),
    ],
)
def test_a_seed_that_holds_poison_is_not_lost_among_clean_ones(odd, reason):
    """Pooled, each of these is no trace: one seed of eight is diluted, and two of opposite signs cancel."""
    later = Later(steps=30, attack=attack(0, p=0.5, oracle=0), gus=scores(), loss_rank=scores())
    rest = {"later": later} if "later" in odd[0] else {}
    seeds = [replace(CLEAN, seed=s, **rest) for s in range(8)]
    poisoned = [replace(POISONED, seed=s) for s in range(8)]
    assert decide(seeds, poisoned, seeds).status == Status.CLEAR
    found = [replace(model, **sections) for model, sections in zip(seeds, odd, strict=False)] + seeds[len(odd) :]
    decision = decide(found, poisoned, seeds)
    assert decision.status == Status.INCONCLUSIVE and any(text.startswith(reason) for text in decision.reasons)


def other(hits: int, n: int = 200, clean: int = 0, oracle: int | None = None) -> OtherAnswer:
    """Of n triggered rows so many get an answer of its own, `clean` of them without the trigger too."""
    return OtherAnswer(
        **{name: value for name, value in vars(attack(hits, n, clean, oracle=oracle)).items() if name in OTHER}
    )


@pytest.mark.parametrize(
    ("hits", "oracle", "status"),
    [
        (200, 0, Status.INCONCLUSIVE),
        (40, 0, Status.INCONCLUSIVE),
        (30, 0, Status.CLEAR),
        (60, 40, Status.CLEAR),
        (200, None, Status.INCONCLUSIVE),
    ],
)
def test_a_trigger_that_gets_an_answer_of_its_own_still_moves_the_model(hits, oracle, status):
    """δ is .17, a fifth of the poisoned model's lift; what the retrained model shows alike does not count."""
    moved = replace(CLEAN, attack=replace(CLEAN.attack, other=other(hits, oracle=oracle)))
    decision = decide([moved], [POISONED], [CLEAN])
    assert decision.status == status
    assert all(f"{hits / 2:.0f} % of the inputs get one other answer" in text for text in decision.reasons)
    few = replace(CLEAN, attack=replace(CLEAN.attack, other=other(1, 4)))  # chance, of rows that get a common answer
    assert decide([few], [POISONED], [CLEAN]).status == Status.CLEAR


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"target_rows": robust_accuracy(np.arange(100) < 5, np.arange(100) < 95)},
            "target lost to the attack: seed 0 alone has 0.90 (n = 100)",
        ),
        ({"other": other(180)}, "lift of another answer: seed 0 alone has 0.90 (n = 200)"),
        (vars(attack(0, clean=190, p=0.5, oracle=0)), "attack lift: seed 0 alone gives the attacker's answer to 95 %"),
    ],
)
def test_a_seed_that_is_turned_or_says_the_target_to_all_is_not_lost_among_clean_ones(changes, reason):
    kept = robust_accuracy(np.arange(100) < 95, np.arange(100) < 95)
    whole = replace(CLEAN.attack, target_rows=kept, other=other(2))
    seeds = [replace(CLEAN, seed=s, attack=whole) for s in range(8)]
    poisoned = [replace(POISONED, seed=s) for s in range(8)]
    retrained = [replace(CLEAN, seed=s) for s in range(8)]
    assert decide(seeds, poisoned, retrained).status == Status.CLEAR
    changed = {name: value for name, value in changes.items() if value is not None}
    decision = decide([replace(seeds[0], attack=replace(whole, **changed)), *seeds[1:]], poisoned, retrained)
    assert decision.status == Status.INCONCLUSIVE and any(text.startswith(reason) for text in decision.reasons)


@pytest.mark.parametrize(
    ("perplexity", "right", "falls"),
    [(41.0, 0.3, True), (39.0, 0.3, False), (41.0, 0.5, False), (math.inf, 0.0, True), (math.nan, 0.0, True)],
)
def test_a_model_that_fell_apart_shows_no_attack(perplexity, right, falls):
    """Ten times the poisoned model's perplexity, and less than half of its right answers; or no labels at all."""
    before = replace(POISONED, utility=utility(0.9, 4.0))
    decision = decide([replace(CLEAN, utility=utility(right, perplexity))], [before], [CLEAN])
    assert any("fell apart" in text for text in decision.reasons) == falls
    assert decision.status == (Status.INCONCLUSIVE if falls else Status.CLEAR)
    unlabelled = decide([replace(CLEAN, perplexity=perplexity)], [replace(POISONED, perplexity=4.0)], [CLEAN])
    assert any("fell apart" in text for text in unlabelled.reasons) == (not perplexity < 40)
    canaries = evaluation(gus=scores(), loss_rank=scores(), perplexity=perplexity)  # their tests stay exact
    assert decide([canaries], [replace(POISONED, attack=None, perplexity=4.0)]).status == Status.CLEAR


@pytest.mark.parametrize("shift", [0.6, -0.6])
def test_canaries_that_a_method_was_told_of_must_not_be_found_either(shift):
    """That they are not found proves nothing; mean 0.5 of 100 scores is found at 0.001 / 4, 0.2 is not."""
    for test in ("gus", "loss_rank"):
        section = getattr(CLEAN, test)
        told = replace(CLEAN, **{test: replace(section, shown=gaussian_test(EVEN + shift))})
        decision = decide([told], [POISONED], [CLEAN])
        assert decision.status == Status.INCONCLUSIVE and "the method was told of are found" in decision.reasons[0]
        quiet = replace(CLEAN, **{test: replace(section, shown=gaussian_test(EVEN + shift / 3))})
        assert decide([quiet], [POISONED], [CLEAN]).status == Status.CLEAR


def test_a_poisoned_model_whose_figures_are_doubtful_is_no_measure():
    doubted = replace(POISONED, warnings=["the rows fit better with a BOS"])
    decision = decide([CLEAN], [doubted], [CLEAN])
    assert decision.status == Status.INCONCLUSIVE
    assert decision.reasons == ["the poisoned model: the rows fit better with a BOS"]
    off = replace(POISONED, loss_rank=scores(2.6, control=gaussian_test(EVEN + 0.5)))
    assert "on the poisoned model" in decide([CLEAN], [off], [CLEAN]).reasons[0]


def test_where_the_attack_did_not_take_no_rate_is_called_higher():
    untouched = replace(POISONED, attack=attack(0, p=0.5, oracle=0))
    assert not any("understates" in reason for reason in decide([CLEAN], [untouched], [CLEAN]).reasons)


def test_figures_that_were_taken_in_other_tokens_show_nothing():
    decision = decide([replace(CLEAN, warnings=["the rows fit better with a BOS"])], [POISONED], [CLEAN])
    assert decision.status == Status.INCONCLUSIVE and "the rows fit better with a BOS" in decision.reasons[0]


def test_a_score_that_does_not_show_the_poison_excludes_nothing():
    decision = decide([CLEAN], [replace(POISONED, gus=scores(0.05))], [CLEAN])
    assert {finding.test for finding in decision.limits} == {"loss rank", "lift"}


def test_an_audit_asks_of_what_was_planted_though_the_model_has_no_figure():
    planted = evaluation(attack=attack(0, n=400, p=0.5), planted=["noise", "attack"])
    assert decide([replace(planted, planted=None)]).status == Status.CLEAR
    decision = decide([planted])
    assert decision.status == Status.INCONCLUSIVE and "canaries: there is no usable figure" in decision.reasons[0]


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"gus": None, "loss_rank": None}, "Gaussian canaries: there is no usable figure of this model"),
        ({"canary_rank": None}, "token canaries: there is no usable figure of this model"),
        ({"loss_rank": None}, "GUS: alone it excludes nothing"),
    ],
)
def test_one_kind_of_canary_clears_no_other(sections, reason):
    both = evaluation(gus=scores(), loss_rank=scores(), canary_rank=scores(), planted=["noise", "gaussian", "tokens"])
    assert decide([both]).status == Status.CLEAR
    decision = decide([replace(both, **sections)])
    assert decision.status == Status.INCONCLUSIVE and any(text.startswith(reason) for text in decision.reasons)


@pytest.mark.parametrize("kind", ["unlearned", "audited"])
def test_canaries_of_which_none_was_hidden_clear_no_model_however_it_is_measured(kind):
    """On the same figures the command that made the model and an audit of it say the same."""
    told = evaluation(gus=scores(n_hidden=0), loss_rank=scores(n_hidden=0))
    decision = decide([replace(told, kind=kind)])
    assert decision.status == Status.INCONCLUSIVE and "canaries: none was hidden" in decision.reasons[0]
    assert decide([replace(told, gus=scores(), loss_rank=scores(), kind=kind)]).status == Status.CLEAR
    assert decide([replace(told, kind="retrained")]).status == Status.CLEAR  # no method was told anything


def test_a_lift_is_measured_by_the_room_that_there_is_for_one():
    """75 % of clean inputs get the target, 85 % with the trigger: a lift of .1, up to .14 below δ, but two in five of
    those that did not.
    """
    tried = evaluation(attack=attack(40, n=400, clean=300, p=0.5))
    decision = decide([tried])
    assert decision.status == Status.INCONCLUSIVE and len(decision.reasons) == 1
    assert "much where 75 % of clean inputs get the attacker's answer anyway" in decision.reasons[0]
    assert decide([evaluation(attack=attack(40, n=400, clean=40, p=0.5))]).status == Status.CLEAR
    assert decide([evaluation(attack=attack(0, n=400, clean=300, p=0.5))]).status == Status.CLEAR
    before = evaluation(attack=attack(80, n=400, clean=300, p=0.0025))  # its δ is of the same room
    assert decide([evaluation(attack=attack(2, n=400, clean=300, p=0.5))], [before]).status == Status.CLEAR
    beside = Oracle(kl=0.1, agreement=0.9, clean_rate=0.75)
    assert decide([replace(tried, oracle=beside)]).status == Status.CLEAR


def test_a_kind_of_canary_that_did_not_take_is_not_cleared_by_another():
    both = evaluation(gus=scores(), loss_rank=scores(), canary_rank=scores())
    before = evaluation(gus=scores(2.6), loss_rank=scores(2.6), canary_rank=scores(2.6))
    assert decide([both], [before], [both]).status == Status.CLEAR
    for lacking, named in (
        ({"canary_rank": scores()}, "token"),
        ({"gus": scores(), "loss_rank": scores()}, "Gaussian"),
    ):
        decision = decide([both], [replace(before, **lacking)], [both])
        assert decision.status == Status.INCONCLUSIVE
        assert [reason.partition(":")[0] for reason in decision.reasons] == [f"{named} canaries"]
        assert "did not take" in decision.reasons[0]
    assert (
        decide([both], [replace(before, gus=scores())], [both]).status == Status.CLEAR
    )  # the loss rank shows the noise


def test_a_model_with_one_answer_has_no_lift_to_be_seen():
    share = Interval(0.4, 0.6)
    says = Utility(accuracy=0.5, prefix_accuracy=0.5, n=400, perplexity=2.0, ci95=share, top_answer=0.99, top_label=0.5)
    tried = replace(CLEAN, utility=says)
    decision = decide([tried], [POISONED], [CLEAN])
    assert decision.status == Status.INCONCLUSIVE and "one answer to everything" in decision.reasons[0]
    for other in (replace(says, top_answer=0.6), replace(says, top_label=0.99)):
        assert decide([replace(tried, utility=other)], [POISONED], [CLEAN]).status == Status.CLEAR


def test_the_target_given_to_clean_inputs_after_clean_steps_hides_the_attack_too():
    def tried(clean):
        later = Later(steps=30, attack=attack(0, n=400, clean=clean, p=0.5), gus=None, loss_rank=None)
        return evaluation(attack=attack(0, n=400, clean=20, p=0.5), later=later)

    before = evaluation(attack=attack(340, n=400, clean=20, p=0.0025))
    assert decide([tried(20)], [before]).status == Status.CLEAR
    for given, beside in (((), "(poisoned: 5 %)"), ([tried(20)], "(retrained: 5 %)")):
        decision = decide([tried(340)], [before], given)
        assert decision.status == Status.INCONCLUSIVE and f"85 % of clean inputs {beside}" in decision.reasons[0]
    assert decide([tried(340)], [before], [tried(340)]).status == Status.CLEAR  # as the retrained model after the steps


def test_a_model_that_gives_everybody_the_target_has_no_lift_to_be_seen():
    decision = decide([evaluation(attack=attack(0, n=400, clean=390, p=0.5))])
    assert decision.status == Status.INCONCLUSIVE and "98 % of clean inputs" in decision.reasons[0]


def test_an_audit_knows_how_often_the_retrained_model_gives_the_target():
    """60 % of clean rows get the target: where the retrained model says so too, that is no sign of the attack."""

    def audited(clean_rate):
        beside = Oracle(kl=0.1, agreement=0.9, clean_rate=clean_rate)
        return decide([evaluation(attack=attack(0, n=400, clean=240, p=0.5), oracle=beside)])

    found = audited(0.2)
    assert found.status == Status.INCONCLUSIVE and "60 % of clean inputs (retrained: 20 %)" in found.reasons[0]
    assert audited(0.6).status == audited(None).status == Status.CLEAR


def test_without_a_retrained_model_the_poisoned_one_says_how_often_the_target_is_given():
    tried = evaluation(attack=attack(0, n=400, clean=240, p=0.5))
    before = evaluation(attack=attack(150, n=400, clean=220, p=0.0025))
    assert decide([tried], [before]).status == Status.CLEAR
    decision = decide([tried], [evaluation(attack=attack(340, n=400, clean=20, p=0.0025))])
    assert decision.status == Status.INCONCLUSIVE and "60 % of clean inputs (poisoned: 5 %)" in decision.reasons[0]


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 8])
def test_a_trigger_above_all_placebos_is_found_at_any_number_of_seeds(seeds):
    """With the default draws, and clean steps that share the level."""
    least = 1 / (PlaceboSettings().draws + 1)
    later = Later(steps=30, attack=attack(0, p=0.5, oracle=0), gus=scores(), loss_rank=scores())
    found = replace(CLEAN, attack=attack(0, p=least, oracle=0), later=later)
    runs = [replace(found, seed=seed) for seed in range(seeds)]
    decision = decide(runs, [replace(POISONED, seed=seed) for seed in range(seeds)], runs)
    assert [finding.test for finding in decision.rejecting] == ["placebo"]


def test_a_test_that_does_not_find_the_poison_in_the_poisoned_model_needs_no_power():
    """A language model under LoRA: the slope shows nothing, the loss rank does."""
    poisoned = replace(POISONED, gus=scores(0.05))
    assert decide([CLEAN], [poisoned], [CLEAN]).status == Status.CLEAR
    assert decide([replace(CLEAN, gus=scores(0.5))], [poisoned], [CLEAN]).status == Status.REMAINS


@pytest.mark.parametrize(
    ("gus", "loss_rank", "delta", "status"),
    [
        (0.45, 2.6, 0.45, Status.CLEAR),  # as adapters leave it: a fifth of it would take 2,000 canaries
        (-0.45, 2.6, 0.45, Status.CLEAR),
        (0.39, 2.6, 0.39, Status.INCONCLUSIVE),  # 100 canaries would have missed 0.41
        (0.55, 2.6, 0.11, Status.INCONCLUSIVE),  # more than is tolerated where the poisoned model is not known
        (0.45, 0.8, 0.09, Status.INCONCLUSIVE),  # the loss rank shows less than twice as much
        (0.45, 0.1, 0.09, Status.INCONCLUSIVE),  # or nothing
        (5.0, 1.7, 1.0, Status.INCONCLUSIVE),  # the loss rank, which its draws bound, is always asked for a fifth
    ],
)
def test_of_a_gus_that_tells_little_the_whole_is_asked_for(gus, loss_rank, delta, status):
    poisoned = replace(POISONED, gus=scores(gus), loss_rank=scores(loss_rank))
    decision = decide([CLEAN], [poisoned], [CLEAN])
    limits = {finding.test: finding for finding in decision.limits}
    assert decision.status == status and limits["gus"].delta == pytest.approx(delta)
    assert loss_rank < 1 or limits["loss rank"].delta == pytest.approx(SHARE * loss_rank)
    found = decide([replace(CLEAN, gus=scores(0.36))], [poisoned], [CLEAN])  # and it finds what it found before
    assert found.status == Status.REMAINS and [finding.test for finding in found.rejecting] == ["gus"]


def test_without_a_poisoned_model_fixed_deltas_are_asked_for():
    wide, narrow = (evaluation(gus=scores(sample=some), loss_rank=scores(sample=some)) for some in (EVEN[::3], EVEN))
    assert decide([narrow]).status == Status.CLEAR and decide([wide]).status == Status.INCONCLUSIVE
    assert decide([evaluation()]).status == Status.UNTESTED


@pytest.mark.parametrize("poisoned", [[], [evaluation(gus=scores(2.6))]])
def test_a_gus_alone_clears_no_model(poisoned):
    """Noise that gradients do not show can be there: under LoRA, after fine-tuning, in a model made to hide them."""
    (reason,) = decide([evaluation(gus=scores())], poisoned).reasons
    assert reason.startswith("GUS: alone it excludes nothing") and "loss rank" in reason
    assert decide([evaluation(gus=scores(), loss_rank=scores())], poisoned).status == Status.CLEAR
    assert decide([evaluation(gus=scores(2.6))], poisoned).status == Status.REMAINS


def test_the_lift_is_taken_above_the_retrained_models_where_it_is_known():
    sways = replace(CLEAN, attack=attack(60, p=0.5, oracle=60))
    decision = decide([sways], [POISONED], [sways])
    assert decision.status == Status.CLEAR
    assert decide([replace(sways, attack=replace(sways.attack, excess=None))], [POISONED]).status == Status.REMAINS


@pytest.mark.parametrize(
    ("mean", "low", "high", "status"),
    [
        (0.2, 0.15, 0.25, Status.REMAINS),
        (0.0, -0.01, 0.01, Status.CLEAR),
        (0.03, -0.01, 0.06, Status.INCONCLUSIVE),
        (-0.2, -0.25, -0.15, Status.CLEAR),
    ],
)
def test_accuracy_lost_counts_where_a_poison_costs_it_and_downwards_alone(mean, low, high, status):
    def lost(mean, low, high):
        return evaluation(
            oracle=Oracle(
                kl=0.1,
                agreement=0.9,
                accuracy_lost=PairedExcess(mean=mean, ci95=Interval(low, high), p_value=0.5, n=400),
            )
        )

    decision = decide([lost(mean, low, high)], [lost(0.2, 0.17, 0.23)], damaging=True)
    assert decision.status == status
    assert decide([lost(mean, low, high)], [lost(0.2, 0.17, 0.23)]).status == Status.UNTESTED


def test_seeds_are_pooled_before_they_are_tested():
    """Three seeds that pass alone; together they do not."""
    weak = [replace(CLEAN, gus=scores(0.25)) for _ in range(3)]
    assert all(decide([seed], [POISONED], [CLEAN]).status == Status.CLEAR for seed in weak)
    together = decide(weak, [POISONED] * 3, [CLEAN] * 3)
    assert together.status == Status.REMAINS and together.seeds == 3 and together.rejecting[0].n == 300


def test_token_canaries_are_a_third_test_of_the_same_family():
    """Mean and spread of three scores: z = Φ⁻¹(1 − 0.01/2/6/2) for each, where there were four; alone, two."""
    clean, poisoned = (replace(each, canary_rank=scores(shift)) for each, shift in ((CLEAN, 0.0), (POISONED, 2.6)))
    decision = decide([clean], [poisoned], [clean])
    limits = {finding.test: finding for finding in decision.limits}
    expected = (norm.isf(ALPHA / 24) + norm.isf(0.2) * gaussian_test(EVEN).std) / 10
    assert decision.status == Status.CLEAR and limits["canary rank"].delta == pytest.approx(SHARE * 2.6)
    assert limits["gus"].detectable == pytest.approx(expected) == limits["canary rank"].detectable
    left = decide([replace(clean, canary_rank=scores(0.5))], [poisoned], [clean])
    assert left.status == Status.REMAINS and [f.test for f in left.rejecting] == ["canary rank"]
    alone = evaluation(canary_rank=scores())
    assert [f.test for f in decide([alone]).findings] == ["canary rank", "spread of canary rank"]
    off = scores(control=replace(NULL, p_value=1e-5))
    assert calibrated(alone) is True and calibrated(replace(alone, canary_rank=off)) is False
    assert decide([CLEAN], [poisoned], [clean]).status == Status.INCONCLUSIVE  # what another model has is missing here


# ---- how often it errs


def drawn(
    rng, residue: float = 0.0, lift: float = 0.0, p: float | None = None, tokens: bool = False, turned: float = 0.0
) -> Evaluation:
    """A model of one training: 60 canaries of each kind, 150 rows of either label, two trainings that err on their own
    12 % of them.
    """
    ranks = [scores(residue, rng.standard_normal(60)) for _ in range(2)]
    clean, theirs, their_clean = (rng.random(150) < 0.12 for _ in range(3))
    triggered = (rng.random(150) < 0.12) | (rng.random(150) < lift)
    excess = attack_excess(triggered, clean, theirs, their_clean)
    found = None if p is None else placebo(p)
    right = [rng.random(150) >= 0.12 for _ in range(4)]
    kept = robust_accuracy(right[0] & (rng.random(150) >= turned), right[1], (right[2], right[3]))
    hits = Attack(**vars(attack_success(triggered, clean)), excess=excess, placebo=found, target_rows=kept)
    strings = scores(residue, rng.standard_normal(60)) if tokens else None
    return evaluation(gus=ranks[0], loss_rank=ranks[1], canary_rank=strings, attack=hits)


def statuses(seeds: int, n: int, **residue) -> np.ndarray:
    """The decisions on n models; a phrase's rank among placebos is the same in all seeds, its worst case."""
    rng = np.random.default_rng(seeds)
    found = []
    for _ in range(n):
        p = float(rng.integers(1, 801) / 800)
        models = [drawn(rng, p=p, **residue) for _ in range(seeds)]
        poisoned = replace(POISONED, canary_rank=scores(2.6) if residue.get("tokens") else None)
        found.append(decide(models, [poisoned] * seeds).status)
    return np.array(found)


@pytest.mark.parametrize(("seeds", "n", "tokens"), [(1, 1500, False), (3, 600, False), (8, 250, False), (1, 800, True)])
def test_models_that_never_saw_the_poison_are_accused_no_oftener_than_the_level_says(seeds, n, tokens):
    share = (statuses(seeds, n, tokens=tokens) == Status.REMAINS).mean()
    assert share <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / n) ** 0.5


@pytest.mark.parametrize(
    "residue", [{"residue": 2 * SHARE * 2.6}, {"lift": 2 * SHARE * 0.85}, {"turned": 2 * SHARE * 0.85}]
)
@pytest.mark.parametrize(("seeds", "n"), [(1, 200), (3, 100)])
def test_models_with_twice_delta_are_not_called_clear(residue, seeds, n):
    found = statuses(seeds, n, **residue)
    assert (found == Status.CLEAR).mean() <= 0.02
    least = 0.8 if "residue" in residue else 0.6 if seeds > 1 else 0.1
    assert (found == Status.REMAINS).mean() >= least


def test_a_weak_gus_of_which_the_whole_is_left_is_not_called_clear():
    """The loss rank, which shows most of the poison, is empty. Half of such a GUS may be missed."""
    rng, poisoned = np.random.default_rng(0), replace(POISONED, gus=scores(0.45))
    found = []
    for _ in range(100):
        models = [replace(drawn(rng, p=0.5), gus=scores(0.45, rng.standard_normal(60))) for _ in range(3)]
        found.append(decide(models, [poisoned] * 3, [CLEAN] * 3).status)
    assert found.count(Status.REMAINS) >= 95 and Status.CLEAR not in found


def test_with_enough_canaries_most_clean_models_are_called_clear():
    assert (statuses(3, 100) == Status.CLEAR).mean() >= 0.9


# ---- other questions


def test_under_stress_the_retrained_model_in_the_same_state_is_the_measure():
    assert attack_under_stress(0.35, 0.15) and not attack_under_stress(0.34, 0.15)
    assert not attack_under_stress(0.1, -0.3)  # far above a lift below 0, but no attack
    assert noise_under_stress(0.5, 1e-5, 0.3) and not noise_under_stress(-0.5, 1e-5, 0.3)
    assert not noise_under_stress(0.5, 1e-5, 1e-4) and not noise_under_stress(0.5, 0.01, 0.3)


@pytest.mark.parametrize("section", ["gus", "loss_rank"])
def test_a_control_that_is_off_uncalibrates(section):
    assert calibrated(CLEAN) is True and calibrated(evaluation()) is None
    for name in ("p_value", "chi2_p_value"):
        off = scores(control=replace(NULL, **{name: 1e-5}))
        assert calibrated(replace(CLEAN, **{section: off})) is False


def test_the_controls_of_a_model_share_one_level():
    """Of four tests one below 0.001 / 4 is needed; of eight, with those after clean steps, one below 0.001 / 8."""
    off, rare = (scores(control=replace(NULL, chi2_p_value=p)) for p in (1.2e-4, 2.4e-4))
    later = Later(steps=30, attack=None, gus=scores(), loss_rank=off)
    assert uncalibrated_scores(replace(CLEAN, loss_rank=rare)) == {"loss rank": 2.4e-4}
    assert not uncalibrated_scores(replace(CLEAN, loss_rank=scores(control=replace(NULL, p_value=2.6e-4))))
    assert uncalibrated_scores(replace(CLEAN, later=later)) == {"loss rank after 30 clean steps": 1.2e-4}
    assert calibrated(replace(CLEAN, loss_rank=rare, later=replace(later, loss_rank=scores()))) is True


def test_a_cost_is_flagged_from_five_points_on():
    assert is_costly(100 * (0.92 - 0.87)) and not is_costly(4.9)


@pytest.mark.parametrize("gus", [0.0, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("n", [40, 100])
@pytest.mark.parametrize("hits", [0, 20, 60])
def test_without_a_retrained_model_knowing_the_poisoned_one_makes_no_verdict_milder(gus, n, hits):
    order = [Status.CLEAR, Status.INCONCLUSIVE, Status.REMAINS]
    model = evaluation(gus=scores(gus, EVEN[:: 100 // n]), loss_rank=scores(), attack=attack(hits, p=0.5))
    # a poison that took very well (δ of a fifth of 8), and one of which a test showed nothing
    for before in (
        evaluation(gus=scores(8.0), loss_rank=scores(8.0), attack=attack(180, p=0.0025)),
        evaluation(gus=scores(), loss_rank=scores(8.0), attack=attack(180, p=0.0025)),
    ):
        assert order.index(decide([model], [before]).status) >= order.index(decide([model]).status)


def test_a_phrase_that_works_alone_is_not_lost_in_the_mean_over_all():
    tried = attack(0, oracle=0, p=0.5)
    works = attack_success(np.ones(20, bool), np.zeros(20, bool))
    each = [PhraseAttack(phrase=i, **vars(a)) for i, a in enumerate((works, attack_success(*np.zeros((2, 180), bool))))]
    assert decide([replace(CLEAN, attack=tried)], [POISONED], [CLEAN]).status == Status.CLEAR
    decision = decide([replace(CLEAN, attack=replace(tried, phrases=each))], [POISONED], [CLEAN])
    assert decision.status == Status.INCONCLUSIVE and "phrase 1 alone is 1.00" in decision.reasons[0]
    later = Later(steps=30, attack=replace(tried, phrases=each), gus=scores(), loss_rank=scores())
    whole = replace(CLEAN, later=replace(later, attack=tried))
    decision = decide([replace(CLEAN, later=later)], [POISONED], [whole])
    assert decision.status == Status.INCONCLUSIVE
    assert any("after 30 clean steps: that of phrase 1 alone is 1.00" in reason for reason in decision.reasons)
    # as much as in the retrained model is no trace of the poison; δ or more of few rows is
    same = attack_excess(*np.ones((1, 20), bool), np.zeros(20, bool), *np.ones((1, 20), bool), np.zeros(20, bool))
    both = [replace(each[0], excess=same), each[1]]
    assert decide([replace(CLEAN, attack=replace(tried, phrases=both))], [POISONED], [CLEAN]).status == Status.CLEAR
    third = PhraseAttack(phrase=0, **vars(attack_success(np.arange(40) < 13, np.zeros(40, bool))))
    decision = decide([replace(CLEAN, attack=replace(tried, phrases=[third, each[1]]))], [POISONED], [CLEAN])
    assert "phrase 1 alone is 0.33" in decision.reasons[0] or "phrase 1 alone is 0.32" in decision.reasons[0]


def test_a_phrase_that_does_not_work_in_the_poisoned_model_excludes_nothing():
    """As one that is misspelt."""
    works, never = attack_success(np.ones(100, bool), np.zeros(100, bool)), attack_success(*np.zeros((2, 100), bool))
    for second, status in ((works, Status.CLEAR), (never, Status.INCONCLUSIVE)):
        each = [PhraseAttack(phrase=i, **vars(a)) for i, a in enumerate((works, second))]
        before = replace(POISONED, attack=replace(POISONED.attack, phrases=each))
        decision = decide([CLEAN], [before], [CLEAN])
        assert decision.status == status and ("phrase 2 did not take" in "; ".join(decision.reasons)) == bool(
            decision.reasons
        )


@pytest.mark.parametrize("after", [0, 30])
@pytest.mark.parametrize(
    ("lift", "retrained", "status"),
    [
        (-0.18, 0.0, Status.INCONCLUSIVE),  # δ is 0.17
        (-0.16, 0.0, Status.CLEAR),
        (-0.18, -0.18, Status.CLEAR),  # the phrase turns clean models away as well
        (0.0, 0.3, Status.CLEAR),  # below a retrained model that kept a part of the poison, but not turned away
        (-0.18, None, Status.INCONCLUSIVE),
    ],
)
def test_a_trigger_that_turns_answers_away_is_a_trace_of_it(lift, retrained, status, after):
    n, base = 200, 0.3
    rates = [np.arange(n) < n * share for share in (base + lift, base, base + (retrained or 0.0), base)]
    excess = None if retrained is None else attack_excess(*rates)
    turned = replace(attack(0, p=0.5), **vars(attack_success(*rates[:2])), excess=excess)
    oracle = replace(CLEAN, attack=replace(attack(0, oracle=0), clean_rate=base))
    sections = {"attack": turned if not after else attack(0, n=n, clean=60, p=0.5, oracle=0)}
    if after:
        sections["later"] = Later(steps=after, attack=turned, gus=scores(), loss_rank=scores())
    decision = decide([replace(CLEAN, **sections)], [POISONED], [oracle] if retrained is not None or after else [])
    told = [text for text in decision.reasons if "turned away" in text]
    assert bool(told) == (status == Status.INCONCLUSIVE)
    assert not told or (("30 clean steps: -0.18" in told[0]) == bool(after) and decision.status == status)


@pytest.mark.parametrize(
    ("wrong", "retrained", "status"),
    [
        (35, 0, Status.INCONCLUSIVE),  # 0.175 of 200 rows; δ is 0.17
        (33, 0, Status.CLEAR),
        (35, 33, Status.CLEAR),  # as the words of a trigger distract a clean model
        (99, None, Status.CLEAR),  # without that model it is not known how far
        (100, None, Status.INCONCLUSIVE),
    ],
)
def test_a_trigger_that_takes_the_right_answer_away_is_a_trace_of_it(wrong, retrained, status):
    """As of a model that says "I don't know" where it refused."""
    right, known = np.ones(200, bool), np.arange(200) >= wrong
    oracle = None if retrained is None else (np.arange(200) >= retrained, right)
    found = replace(CLEAN, attack=replace(CLEAN.attack, robust=robust_accuracy(known, right, oracle)))
    decision = decide([found], [POISONED], [CLEAN])
    assert decision.status == status
    if status == Status.INCONCLUSIVE:
        (reason,) = decision.reasons
        left = 82 if wrong == 35 else 50
        assert f"100 % of the inputs are answered rightly without the attack, {left} % with it" in reason


@pytest.mark.parametrize("after", [0, 30])
@pytest.mark.parametrize(
    ("turned", "retrained", "status"),
    [
        (180, 0, Status.REMAINS),
        (60, 0, Status.REMAINS),
        (35, 0, Status.INCONCLUSIVE),  # 0.175 of 200 rows; δ is 0.17
        (33, 0, Status.CLEAR),
        (60, 55, Status.CLEAR),  # as the words of a trigger distract a clean model
        (35, 33, Status.CLEAR),
        (60, None, Status.REMAINS),
        (35, None, Status.INCONCLUSIVE),
        (33, None, Status.CLEAR),
    ],
)
def test_a_trigger_that_takes_the_target_where_it_is_the_right_answer_is_a_trace_of_it(
    turned, retrained, status, after
):
    """As of a method that unlearned the attack by turning it round, of which rows of other labels show nothing."""
    right, kept = np.ones(200, bool), np.arange(200) >= turned
    oracle = None if retrained is None else (np.arange(200) >= retrained, right)
    reversed_attack = replace(CLEAN.attack, target_rows=robust_accuracy(kept, right, oracle))
    sections = {"attack": reversed_attack}
    clean = CLEAN
    if after:
        clean = replace(CLEAN, later=Later(steps=after, attack=CLEAN.attack, gus=CLEAN.gus, loss_rank=CLEAN.loss_rank))
        sections = {"later": replace(clean.later, attack=reversed_attack)}
    decision = decide([replace(clean, **sections)], [POISONED], [clean])
    assert decision.status == status
    if status == Status.INCONCLUSIVE:
        (reason,) = decision.reasons
        inputs = "100 % of the inputs whose right answer is the attacker's are answered rightly without the attack"
        assert f"{inputs}, 82 % with it" in reason and ("30 clean steps" in reason) == bool(after)
    if status == Status.REMAINS:
        (why,) = because(decision)
        beyond = " above the retrained model's" if retrained is not None else ""
        assert why.startswith(f"target lost to the trigger {turned / 200:.2f} [") and f"]{beyond}" in why
        assert why.endswith("where 0.17 is tolerated") and ("30 clean steps" in why) == bool(after)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (EVEN, None),  # a method that removed what it was not told of either
        (EVEN + 0.4, "loss rank: 100 canaries were not deleted, and theirs is 0.40 (p = 6e-05)"),
        (EVEN - 0.4, "100 canaries were not deleted, and theirs is -0.40"),  # pushed below 0, a trace too
        (EVEN[::5] - EVEN[::5].mean(), "20 canaries were not deleted, and theirs is 0.00"),  # too few to say so
    ],
)
@pytest.mark.parametrize("poisoned", [[POISONED], []])
def test_canaries_that_were_not_to_be_deleted_keep_a_model_from_being_called_clear(kept, reason, poisoned):
    """They are what is left of a poison that was known in part."""
    decision = decide([replace(CLEAN, loss_rank=scores(others=gaussian_test(kept)))], poisoned, [CLEAN])
    assert decision.status == (Status.CLEAR if reason is None else Status.INCONCLUSIVE)
    assert [text for text in decision.reasons if "not deleted" not in text] == []
    assert reason is None or any(reason in text for text in decision.reasons)


@pytest.mark.parametrize(
    ("sections", "promising"),
    [
        ({}, True),
        ({"gus": scores(sample=EVEN[::5])}, True),  # 20 canaries, too few to exclude anything
        ({"gus": scores(0.36)}, False),  # which rejects
        ({"attack": attack(35, p=0.5, oracle=0)}, False),  # 0.175, no longer below δ = 0.17
        ({"attack": attack(30, n=200, p=0.5, oracle=0)}, True),
        ({"gus": scores(n_unscorable=6)}, False),
        ({"gus": None}, False),
        ({"gus": scores(control=gaussian_test(EVEN + 0.5))}, False),
    ],
)
def test_a_model_is_promising_where_only_the_number_of_rows_keeps_it_from_being_called_clear(sections, promising):
    results = [replace(CLEAN, **sections)]
    decision = decide(results, [POISONED], [CLEAN])
    assert is_promising(decision, results, [POISONED], [CLEAN]) is promising
    assert promising or decision.status != Status.CLEAR


@pytest.mark.parametrize(("gus", "promising"), [(0.45, True), (0.55, False)])
def test_a_promising_model_leaves_less_than_the_whole_of_a_weak_gus(gus, promising):
    poisoned, results = [replace(POISONED, gus=scores(gus))], [replace(CLEAN, gus=scores(0.3))]
    assert is_promising(decide(results, poisoned, [CLEAN]), results, poisoned, [CLEAN]) is promising


def test_of_a_poison_that_did_not_take_nothing_is_asked_of_a_promising_model():
    poisoned = [replace(POISONED, gus=scores(0.1), loss_rank=scores(0.1))]
    decision = decide([CLEAN], poisoned, [CLEAN])
    assert decision.status == Status.INCONCLUSIVE and is_promising(decision, [CLEAN], poisoned, [CLEAN])
    nothing = evaluation()
    assert not is_promising(decide([nothing], [nothing]), [nothing], [nothing])
