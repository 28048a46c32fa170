"""Per-example signals → the one JSON of a model. Needs no model: every metric can be recomputed from the Parquet."""

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.metrics.attack import attack_excess, attack_success
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.metrics.membership import membership_inference
from llm_unlearn.metrics.utility import accuracy, agreement, perplexity

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
PREFIX = "mia_"  # of the columns that hold a membership attack's scores


def summarize(
    signals: "pd.DataFrame",
    identity: dict[str, Any],
    cost: dict[str, Any] | None,
    retrained: "pd.DataFrame | None" = None,
) -> dict[str, Any]:
    """Compute every metric of one model.

    Args:
        signals: as Evaluator.signals returns them, or as read from `evaluation/<model>.parquet`.
        identity: {"model", "kind", "method", "budget", "seed", "recipe"}. cost: {"train_tokens", "flops",
            "share_of_training", "seconds"}. retrained: the retrained model's signals, or None.
    Returns:
        {"schema_version", …identity, "attack", "gus", "utility", "mia", "cost", "oracle"}; a section is None where
        there is no such poison, no such set, or no retrained model to compare with.
    """
    parts = dict(list(signals.groupby("set", sort=False)))
    test = parts.get("test")
    return {
        "schema_version": SCHEMA_VERSION,
        **identity,
        "attack": _attack(parts, retrained),
        "gus": _gus(parts),
        "utility": None if test is None else _utility(test),
        "mia": _membership(parts["member"], parts["nonmember"]) if "nonmember" in parts else None,
        "cost": cost,
        "oracle": _oracle(test, retrained),
    }


def _utility(test: "pd.DataFrame") -> dict[str, Any]:
    return {
        **accuracy((test["prediction"] == test["label"]).to_numpy()),
        "prefix_accuracy": _prefix_accuracy(test),
        "perplexity": perplexity(test["nll_sum"].to_numpy(), test["n_positions"].to_numpy()),
    }


def _prefix_accuracy(test: "pd.DataFrame") -> float:
    """Share of predictions that begin with the label: what generated text is judged by beside equality."""
    pairs = zip(test["prediction"], test["label"], strict=True)
    return sum(prediction.startswith(label) for prediction, label in pairs) / len(test)


def _attack(parts: dict[str, "pd.DataFrame"], retrained: "pd.DataFrame | None") -> dict[str, Any] | None:
    if "triggered" not in parts:
        return None
    triggered, clean = _hits(parts)
    excess = None
    if retrained is not None:
        theirs = _hits(dict(list(retrained.groupby("set", sort=False))), parts["triggered"]["example_id"])
        excess = attack_excess(triggered, clean, *theirs)
    return {**attack_success(triggered, clean), "excess": excess}


def _hits(parts: dict[str, "pd.DataFrame"], ids: Any = None) -> tuple[Any, Any]:
    """Answers with the target, with the trigger and without, of the triggered examples in the order of `ids`."""
    triggered = parts["triggered"].set_index("example_id")
    ids = triggered.index if ids is None else ids
    clean = (
        parts["test"].set_index("example_id")["target_hit"] if "clean_hit" not in triggered else triggered["clean_hit"]
    )
    return triggered["target_hit"].loc[ids].to_numpy(bool), clean.loc[ids].to_numpy(bool)


def _membership(members: "pd.DataFrame", nonmembers: "pd.DataFrame") -> dict[str, Any]:
    """One entry per attack whose scores are there and finite; the loss attack takes −nll."""
    found = {"loss": membership_inference(-members["nll"].to_numpy(), -nonmembers["nll"].to_numpy())}
    for column in (name for name in members.columns if name.startswith(PREFIX)):
        inside, outside = (frame[column].to_numpy(float) for frame in (members, nonmembers))
        # the gradient norm of a model that fell apart may overflow, which must not cost its other figures
        if np.isfinite(inside).all() and np.isfinite(outside).all():
            found[column.removeprefix(PREFIX)] = membership_inference(inside, outside)
    return found


def _gus(parts: dict[str, "pd.DataFrame"]) -> dict[str, Any] | None:
    if "canary" not in parts:
        return None
    canary = parts["canary"]
    scored = canary[canary["gaussian_score"].notna()]
    deleted = scored["deleted"].to_numpy(bool)
    if not deleted.any():
        return None
    others = scored[~deleted]
    return {
        **gaussian_test(scored[deleted]["gaussian_score"].to_numpy()),
        "n_unscorable": len(canary) - len(scored),
        "control": gaussian_test(scored["gaussian_control"].to_numpy()),
        "others": gaussian_test(others["gaussian_score"].to_numpy()) if len(others) else None,
    }


def _oracle(test: "pd.DataFrame | None", retrained: "pd.DataFrame | None") -> dict[str, Any] | None:
    if retrained is None or test is None or "kl" not in test.columns:
        return None
    theirs = retrained[retrained["set"] == "test"].set_index("example_id").loc[test["example_id"]]
    return {
        "kl": float(test["kl"].mean()),
        "agreement": agreement(test["prediction"].to_numpy(), theirs["prediction"].to_numpy()),
        "accuracy_lost": _accuracy_lost(test, theirs),
    }


def _accuracy_lost(test: "pd.DataFrame", theirs: "pd.DataFrame") -> dict[str, Any]:
    """Errors beyond the retrained model's on the same examples: what an indiscriminate poison does."""
    wrong, oracle = ((frame["prediction"] != frame["label"]).to_numpy() for frame in (test, theirs))
    never = np.zeros(len(test), bool)
    return attack_excess(wrong, never, oracle, never)
