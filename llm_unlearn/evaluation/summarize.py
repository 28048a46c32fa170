"""Per-example signals → the result of one model. Needs no model: every metric can be recomputed from the Parquet."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.metrics.attack import PairedExcess, RobustAccuracy, attack_excess, attack_success, robust_accuracy
from llm_unlearn.metrics.benchmarks import mean_score
from llm_unlearn.metrics.gaussian import GaussianTest, gaussian_test
from llm_unlearn.metrics.membership import MembershipTest, membership_inference
from llm_unlearn.metrics.per_example import LATER, MEMBERSHIP, deciding
from llm_unlearn.metrics.placebo import PlaceboTest, placebo_test, strongest
from llm_unlearn.metrics.results import (
    Attack,
    Cost,
    Evaluation,
    Gus,
    Identity,
    Later,
    Oracle,
    OtherAnswer,
    PhraseAttack,
    Utility,
)
from llm_unlearn.metrics.utility import accuracy, agreement, perplexity

if TYPE_CHECKING:
    import pandas as pd

Sets = dict[str, "pd.DataFrame"]


def summarize(
    signals: "pd.DataFrame",
    identity: Identity,
    cost: Cost | None,
    retrained: "pd.DataFrame | None" = None,
    later_steps: int = 0,
) -> Evaluation:
    """Compute every metric of one model.

    Args:
        signals: the per-example table, as Evaluator.signals returns it or read from `evaluation/<model>.parquet`.
        identity: which model it is.
        cost: of its training, where that is known.
        retrained: the retrained model's per-example table, or None.
        later_steps: the clean training steps after which the sets that begin with LATER were measured.

    Returns:
        The evaluation; a section is None where there is no such poison, no such set, or no retrained model.
    """
    sets = _sets(signals)
    test, oracle = sets.get("test"), None if retrained is None else _sets(retrained)
    labelled = test is not None and bool(test["label"].ne("").any())
    return Evaluation(
        **vars(identity),
        attack=_attack(sets, oracle),
        gus=_gus(sets, "gaussian_score", "gaussian_control"),
        loss_rank=_gus(sets, "loss_rank", "loss_rank_control"),
        canary_rank=_gus(sets, "canary_rank", "canary_rank_control", "token_canary"),
        utility=_utility(test) if test is not None and labelled else None,
        fluency=mean_score(test["fluency"].to_numpy()) if test is not None and "fluency" in test else None,
        perplexity=None if test is None or labelled else _perplexity(test),
        mia=membership_tests(sets["member"], sets["nonmember"]) if "nonmember" in sets else None,
        cost=cost,
        oracle=_oracle(test, oracle),
        later=_after(later_steps, sets, oracle) if later_steps else None,
    )


def _after(steps: int, sets: Sets, oracle: Sets | None) -> Later | None:
    """The tests of the poison after clean training steps; None where they were not taken of this model."""
    later, oracle_later = _later(sets), _later(oracle or {})
    if not later:
        return None
    return Later(
        steps=steps,
        attack=_attack(later, oracle_later or None),
        gus=_gus(later, "gaussian_score", "gaussian_control"),
        loss_rank=_gus(later, "loss_rank", "loss_rank_control"),
        canary_rank=_gus(later, "canary_rank", "canary_rank_control", "token_canary"),
    )


def _later(sets: Sets) -> Sets:
    return {name.removeprefix(LATER): rows for name, rows in sets.items() if name.startswith(LATER)}


def _sets(signals: "pd.DataFrame") -> Sets:
    return {str(name): rows for name, rows in signals.groupby("set", sort=False)}


def _utility(test: "pd.DataFrame") -> Utility:
    return Utility(
        **vars(accuracy((test["prediction"] == test["label"]).to_numpy())),
        prefix_accuracy=_prefix_accuracy(test),
        perplexity=_perplexity(test),
        top_answer=_top_share(test["prediction"]),
        top_label=_top_share(test["label"]),
    )


def _perplexity(test: "pd.DataFrame") -> float:
    return perplexity(test["nll_sum"].to_numpy(), test["n_positions"].to_numpy())


def _top_share(values: "pd.Series") -> float:
    """Share of the most frequent value."""
    return float(values.value_counts(normalize=True).iloc[0])


def _prefix_accuracy(test: "pd.DataFrame") -> float:
    """Share of predictions that begin with the label: what generated text is judged by beside equality."""
    pairs = zip(test["prediction"], test["label"], strict=True)
    return sum(prediction.startswith(label) for prediction, label in pairs) / len(test)


def _attack(sets: Sets, oracle: Sets | None) -> Attack | None:
    if "triggered" not in sets:
        return None
    triggered = sets["triggered"]
    unusable = int((~np.isfinite(sets["placebo"]["effect"])).sum()) if "placebo" in sets else 0
    placebos = _placebos(sets["placebo"]) if "placebo" in sets and not unusable else {}
    phrases = [
        PhraseAttack(phrase=number, **_lift(sets, oracle, rows["example_id"]), placebo=placebos.get(number))
        for number, rows in _by_trigger(triggered)
    ]
    return Attack(
        **_lift(sets, oracle, triggered["example_id"]),
        placebo=strongest(list(placebos.values())) if placebos else None,
        n_unusable=unusable,
        phrases=phrases or None,
        robust=_robust(sets, oracle, triggered["example_id"]),
        target_rows=_target_rows(sets, oracle),
        other=_other_answer(sets, oracle),
    )


def _lift(sets: Sets, oracle: Sets | None, ids: "pd.Series") -> dict[str, Any]:
    """The attack on some triggered examples, with `excess`, beyond the retrained model's."""
    hits = _hits(sets, ids)
    excess = None if oracle is None else attack_excess(*hits, *_hits(oracle, ids))
    return {**vars(attack_success(*hits)), "excess": excess}


def _robust(sets: Sets, oracle: Sets | None, ids: "pd.Series") -> RobustAccuracy | None:
    """Whether triggered examples are answered rightly; None where what is right is not known, or without the trigger
    not what the test row of the same id is.
    """
    right = _right(sets, ids)
    return None if right is None else robust_accuracy(*right, None if oracle is None else _right(oracle, ids))


def _target_rows(sets: Sets, oracle: Sets | None) -> RobustAccuracy | None:
    """Whether rows whose right answer is the target get it, with the trigger and without."""
    if "target_rows" not in sets:
        return None
    ids = sets["target_rows"]["example_id"]
    beside = None if oracle is None or "target_rows" not in oracle else _hits(oracle, ids, "target_rows")
    return robust_accuracy(*_hits(sets, ids, "target_rows"), beside)


def _other_answer(sets: Sets, oracle: Sets | None) -> OtherAnswer | None:
    """What triggered rows are answered with most often beside the attacker's answer, and how often without the trigger:
    "I don't know." to all of them is no answer of the attacker's, and the trigger's doing.
    """
    triggered = sets["triggered"]
    others = triggered.loc[~triggered["target_hit"].astype(bool), "prediction"]
    if "clean_hit" in triggered or "test" not in sets or others.empty:
        return None
    answer, ids = others.mode().iloc[0], triggered["example_id"]

    def hits(of: Sets) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        with_it, without = (of[name].set_index("example_id").loc[ids, "prediction"] for name in ("triggered", "test"))
        return (with_it == answer).to_numpy(), (without == answer).to_numpy()

    excess = None if oracle is None else attack_excess(*hits(sets), *hits(oracle))
    return OtherAnswer(**vars(attack_success(*hits(sets))), excess=excess)


def _right(sets: Sets, ids: "pd.Series") -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """As `_hits`, whether the answer is the example's own label."""
    if "test" not in sets or "clean_hit" in sets["triggered"] or not sets["test"]["label"].ne("").any():
        return None
    triggered, clean = (sets[name].set_index("example_id").loc[ids] for name in ("triggered", "test"))
    return (triggered["prediction"] == clean["label"]).to_numpy(), (clean["prediction"] == clean["label"]).to_numpy()


def _placebos(table: "pd.DataFrame") -> dict[int, PlaceboTest]:
    """Each planted trigger, by its number, among its placebos."""
    tests = {}
    for number, rows in _by_trigger(table):
        planted, *placebos = rows.sort_values("draw")["effect"]
        stop_at, n = (int(rows[name].iloc[0]) for name in ("stop_at", "n_rows"))
        tests[number] = placebo_test(planted, placebos, stop_at, n)
    return tests


def _by_trigger(table: "pd.DataFrame") -> "Iterator[tuple[int, pd.DataFrame]]":
    """The rows of each planted trigger, by its number; none where rows do not say whose they are."""
    numbers = table["trigger"].dropna().astype(int).unique().tolist() if "trigger" in table else []
    yield from ((number, table[table["trigger"] == number]) for number in sorted(numbers))


def _hits(sets: Sets, ids: "pd.Series", name: str = "triggered") -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each triggered example is answered with the target, with the trigger and without, in the order of ids."""
    triggered = sets[name].set_index("example_id")
    clean = triggered["clean_hit"] if "clean_hit" in triggered else sets["test"].set_index("example_id")["target_hit"]
    return triggered["target_hit"].loc[ids].to_numpy(bool), clean.loc[ids].to_numpy(bool)


def membership_tests(members: "pd.DataFrame", nonmembers: "pd.DataFrame") -> dict[str, MembershipTest]:
    """One entry per attack whose scores are there and finite; the loss attack takes −nll."""
    tests = {"loss": membership_inference(-members["nll"].to_numpy(), -nonmembers["nll"].to_numpy())}
    for column in (name for name in members.columns if name.startswith(MEMBERSHIP)):
        inside, outside = (frame[column].to_numpy(float) for frame in (members, nonmembers))
        # the gradient norm of a model that fell apart may overflow, which must not cost its other figures
        if np.isfinite(inside).all() and np.isfinite(outside).all():
            tests[column.removeprefix(MEMBERSHIP)] = membership_inference(inside, outside)
    return tests


def _gus(sets: Sets, score: str, control: str, kind: str = "canary") -> Gus | None:
    """The test of one score of one kind of canary, of the hidden ones where there are any; None without canaries, or
    where none of those has that score.
    """
    if kind not in sets or score not in sets[kind]:
        return None
    canary = sets[kind]
    deleted = canary["deleted"].to_numpy(bool)
    hidden = canary["hidden"].to_numpy(bool) if "hidden" in canary else np.zeros(len(canary), bool)
    reported = deciding(deleted, hidden)
    scored = canary[score].notna().to_numpy()

    def test(group: NDArray[np.bool_]) -> GaussianTest | None:
        return gaussian_test(canary[score][group & scored].to_numpy()) if (group & scored).any() else None

    if (verdict := test(reported)) is None:
        return None
    return Gus(
        **vars(verdict),
        n_unscorable=int((reported & ~scored).sum()),
        control=gaussian_test(canary[control][scored].to_numpy()),
        others=test(~deleted),
        shown=test(deleted & ~reported),
        n_hidden=int((reported & hidden).sum()) if "hidden" in canary else None,
    )


def _oracle(test: "pd.DataFrame | None", retrained: Sets | None) -> Oracle | None:
    if retrained is None or test is None or "kl" not in test.columns:
        return None
    reference = retrained["test"].set_index("example_id").loc[test["example_id"]]
    clean = _hits(retrained, retrained["triggered"]["example_id"])[1] if "triggered" in retrained else None
    return Oracle(
        kl=float(test["kl"].mean()),
        agreement=agreement(test["prediction"].to_numpy(), reference["prediction"].to_numpy()),
        accuracy_lost=_accuracy_lost(test, reference) if test["label"].ne("").any() else None,
        clean_rate=None if clean is None else float(clean.mean()),
    )


def _accuracy_lost(test: "pd.DataFrame", reference: "pd.DataFrame") -> PairedExcess:
    """Errors beyond the retrained model's on the same examples: what an indiscriminate poison does."""
    wrong, reference_wrong = ((frame["prediction"] != frame["label"]).to_numpy() for frame in (test, reference))
    never = np.zeros(len(test), bool)
    return attack_excess(wrong, never, reference_wrong, never)
