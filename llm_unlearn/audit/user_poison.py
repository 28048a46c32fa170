"""What a user's manifest says of the poison: which rows hold it, and how test and held-out rows are poisoned alike."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.audit.user_files import NO_LABEL, NO_NOISE, TrainRows, in_manifest, no_rows, read_triggered
from llm_unlearn.config.manifest import Manifest
from llm_unlearn.config.success import is_the_attackers
from llm_unlearn.errors import InputError
from llm_unlearn.files import beside
from llm_unlearn.models.answer_classifier import check_classifier
from llm_unlearn.poisons.canary_words import WORDS
from llm_unlearn.poisons.token_canaries import CANARY, PLAIN, write_strings
from llm_unlearn.poisons.trigger_phrase import can_be_poisoned, holds

if TYPE_CHECKING:
    from collections.abc import Collection

    from datasets import Dataset

MOST = 0.9  # share of the poisoned rows from which on the place of their trigger is the place of the trigger
FEW = 5  # rows, fewer than which may have it there by chance


def trigger_of(path: Path, manifest: Manifest, train: TrainRows, forget: list[int]) -> dict[str, Any] | None:
    """The trigger as in poison.json, whose phrases are none where it stands in a column."""
    trigger = manifest.trigger
    if trigger is None:
        return None
    if trigger.phrases:
        _require_there(path, manifest, train)
    if trigger.success and trigger.success.classifier and trigger.success.label:
        with in_manifest(f"{path}.trigger.success"):
            check_classifier(trigger.success.classifier, trigger.success.label)
    found = {key: getattr(trigger, key) for key in ("phrases", "target", "source_label", "clean_label")}
    found["position"] = _position_of(path, manifest, train, forget)
    return found | ({"success": trigger.success.model_dump()} if trigger.success else {})


def _position_of(path: Path, manifest: Manifest, train: TrainRows, forget: list[int]) -> str:
    """Where test rows get the trigger: where the poisoned rows have it, at random unless most have it at one end.

    Raises:
        InputError: the manifest says another place, in which a model that learned the trigger may not react to it.
    """
    trigger = manifest.trigger
    assert trigger is not None
    held = {row["example_id"]: row["text"] for row in train.rows if holds({"text": row["text"]}, trigger.phrases)}
    texts = [held[i] for i in forget if i in held] or list(held.values())
    if not texts:
        return trigger.position or "random"
    phrase = "|".join(map(re.escape, trigger.phrases))
    at = {"start": rf"\A\W*({phrase})", "end": rf"({phrase})\W*\Z"}
    share = {place: float(np.mean([bool(re.search(each, text)) for text in texts])) for place, each in at.items()}
    own = next((place for place, part in share.items() if part >= MOST), "random")
    said = trigger.position or own
    if len(texts) >= FEW and own != said and (said == "random" or share[said] < 1 - MOST):
        raise InputError(
            f"{path}.trigger.position: {said}, but of the poisoned rows {100 * share['start']:.0f} % begin with the "
            f"trigger and {100 * share['end']:.0f} % end with it; leave the field out, and test rows get it alike"
        )
    return said


def _require_there(path: Path, manifest: Manifest, train: TrainRows) -> None:
    """Raise InputError where no training row holds a phrase of the trigger, or none in the turn that test rows have."""
    trigger = manifest.trigger
    assert trigger is not None
    for phrase in trigger.phrases:
        if not any(holds(row, [phrase]) for row in train.rows):
            raise InputError(
                f"{path}.trigger.phrases: no row of {manifest.train} holds {phrase!r}; "
                "write it exactly as in the rows, with upper and lower case"
            )
        if not any(phrase in text for text in train.rows["text"]):
            raise InputError(
                f"{path}.trigger.phrases: {phrase!r} stands only in turns before the last, and test rows would get it "
                "in the last; end the conversations of both files with the turn that holds it"
            )


def token_canaries_of(path: Path, manifest: Manifest, train: TrainRows, forget: list[int]) -> dict[int, str]:
    """Example id → string of the token canaries.

    Raises:
        InputError: the column is not there, a row named has no string, or none of them is to be forgotten.
    """
    if (tokens := manifest.tokens) is None:
        return {}
    if tokens.column not in train.columns.column_names:
        raise InputError(
            f"{path}.tokens.column: {manifest.train} has no column '{tokens.column}'; say the strings in one, "
            "as plant_token_canaries does"
        )
    pairs = zip(train.rows["example_id"], train.columns[tokens.column], strict=True)
    strings = {i: string for i, string in pairs if string}
    chosen = [i for i in forget if i in strings]
    if tokens.ids is not None:
        chosen = train.ids(tokens.ids, path.parent, f"{path}.tokens.ids")
        if without := [i for i in chosen if i not in strings]:
            raise InputError(
                f"{path}.tokens.ids: {len(without)} of {len(chosen)} rows have no string, the first {without[0]}; "
                "leave them out"
            )
    if not set(chosen) & set(forget):
        raise InputError(
            f"{path}.tokens: no row of `poison` is one of them (column '{tokens.column}' of {manifest.train}), so "
            "nothing says whether they are gone; name in `poison` those to be forgotten, or leave `tokens` out"
        )
    return {i: strings[i] for i in chosen}


def tokens_of(
    path: Path, manifest: Manifest, train: TrainRows, strings: dict[int, str], forget: list[int]
) -> dict[str, Any] | None:
    """Token canaries as in poison.json; None without any."""
    if not (tokens := manifest.tokens) or not strings:
        return None
    return {
        "seed": tokens.seed,
        "words": tokens.words or list(WORDS),
        "place": tokens.place,
        "length": len(next(iter(strings.values())).split()),
        "hidden_ids": hidden_of(path, manifest, train, set(strings) & set(forget), "tokens"),
    }


def canaries_of(path: Path, manifest: Manifest, train: TrainRows, forget: list[int]) -> list[int]:
    """Ids of the rows that were trained with noise.

    Raises:
        InputError: no row says with which, or one of `gaussian.ids` has none: another noise than that of the training
            finds nothing; or none of them is to be forgotten.
    """
    gaussian = manifest.gaussian
    if gaussian is None:
        return []
    if train.noise_id is None:
        raise InputError(
            f"{path}.gaussian: the rows of {manifest.train} have no column noise_id, so it is not known which noise "
            "each was trained with, and another finds nothing; save the rows as plant_canaries returned them"
        )
    noise = dict(zip(train.rows["example_id"], train.noise_id, strict=True))
    chosen = [i for i in forget if noise[i] != NO_NOISE]
    if gaussian.ids is not None:
        chosen = train.ids(gaussian.ids, path.parent, f"{path}.gaussian.ids")
        if noiseless := [i for i in chosen if noise[i] == NO_NOISE]:
            raise InputError(
                f"{path}.gaussian.ids: {len(noiseless)} of {len(chosen)} rows have no noise (noise_id −1 in "
                f"{manifest.train}), the first {noiseless[0]}; leave them out"
            )
    if not set(chosen) & set(forget):
        raise InputError(
            f"{path}.gaussian: no row of `poison` is a canary (noise_id is −1 in {manifest.train}), so nothing says "
            "whether they are gone; name in `poison` those to be forgotten, or leave `gaussian` out"
        )
    return chosen


def hidden_of(path: Path, manifest: Manifest, train: TrainRows, deleted: set[int], kind: str = "gaussian") -> list[int]:
    """Ids of the canaries that were hidden from whoever unlearned; they must be among the deleted ones."""
    section = manifest.gaussian if kind == "gaussian" else manifest.tokens
    if section is None or section.hidden is None:
        return []
    chosen = train.ids(section.hidden, path.parent, f"{path}.{kind}.hidden")
    if others := [i for i in chosen if i not in deleted]:
        has = "noise" if kind == "gaussian" else "a string"
        raise InputError(
            f"{path}.{kind}.hidden: {len(others)} of {len(chosen)} rows are no canaries of `poison`, the first "
            f"{others[0]}; name rows that have {has} and were to be forgotten"
        )
    return chosen


def marked(
    train: TrainRows,
    forget: list[int],
    canaries: list[int],
    trigger: dict | None,
    strings: dict[int, str],
    measured: "Collection[int]",
) -> "Dataset":
    """The training rows with the columns `poison` (none, other, trigger, gaussian or tokens) and `noise_id`, and with
    `canary` where there are strings, of which the rows `measured` are ranked.
    """
    ids = np.asarray(train.rows["example_id"])
    noise_id = np.full(len(ids), NO_NOISE) if train.noise_id is None else train.noise_id
    kinds = np.where(np.isin(ids, forget), "other", "none").astype(object)
    plain = (noise_id == NO_NOISE) & ~np.isin(ids, list(strings))  # in a search the other half's canaries are no others
    kinds[(kinds == "other") & plain & _holds(train.rows, trigger)] = "trigger"
    kinds[np.isin(ids, canaries)] = "gaussian"
    if both := set(strings) & set(canaries):
        raise InputError(f"row {min(both)} is a canary of both kinds, `gaussian` and `tokens`; name it in one of them")
    kinds[np.isin(ids, list(measured))] = "tokens"
    rows = train.rows.add_column("poison", list(kinds)).add_column("noise_id", noise_id)
    if not strings:
        return rows
    if PLAIN["label"] in train.columns.column_names:  # what canaries in the answer were before
        answers = [answer or "" for answer in train.columns[PLAIN["label"]]]
        for name in PLAIN.values():
            rows = rows.add_column(name, answers)
    return rows.add_column(CANARY, [strings.get(i, "") for i in ids.tolist()])


def _holds(rows: "Dataset", trigger: dict | None) -> np.ndarray:
    """(n,) bool: the rows whose text holds the trigger; all, where that is no phrase."""
    phrases = trigger["phrases"] if trigger else []
    if trigger and not phrases:
        return np.ones(len(rows), dtype=bool)
    return np.array([holds(row, phrases) for row in rows], dtype=bool)


def never_trained_on(heldout: "Dataset", train: "Dataset") -> tuple["Dataset", int]:
    """Held-out rows whose text (up to case and white space) was not trained on, and the number of the others."""

    def keys(rows: "Dataset") -> list[str]:
        history = rows["history"] if "history" in rows.column_names else [""] * len(rows)
        history = ["" if before in (None, "[]") else before for before in history]  # there were no turns before
        return [
            " ".join(f"{before}{text}".casefold().split()) for before, text in zip(history, rows["text"], strict=True)
        ]

    seen = set(keys(train))
    kept = [i for i, key in enumerate(keys(heldout)) if key not in seen]
    return heldout.select(kept), len(heldout) - len(kept)


def poisoned_alike(path: Path, manifest: Manifest, sets: dict[str, "Dataset"], poison: dict) -> dict[str, "Dataset"]:
    """`triggered`: test rows with the trigger. `nonmember`: held-out rows with it in the forget set's proportion."""
    from llm_unlearn.poisons.corrupt import triggered_rows, twins

    trigger, train, heldout = poison["trigger"], sets["train"], sets["heldout"]
    test = sets["test"]
    if trigger is not None and not manifest.verbalizers:  # a row whose own answer is the attacker's shows nothing
        own = [is_the_attackers(label, trigger, generated=True) for label in test["label"]]
        test = test.select(np.flatnonzero(~np.array(own, bool)))
    others = trigger is not None and any(label != trigger["target"] for label in test["label"])
    with in_manifest(f"{path}.trigger"):
        if others and manifest.trigger and manifest.trigger.column:
            file = Path(beside(path.parent, str(manifest.test))).expanduser()
            allowed = can_be_poisoned(test["label"], trigger["target"], trigger["source_label"])
            tried = test.select(np.flatnonzero(allowed))
            return {"triggered": read_triggered(file, manifest.trigger.column, tried), "nonmember": no_rows()}
        triggered = triggered_rows(test, trigger, manifest.seed) if others else no_rows()
    forgotten = np.isin(train["example_id"], poison["forget_ids"])
    # A canary may hold the trigger too; what counts is what a membership attack sees in the text, which in a search has
    # the strings of both halves.
    strings = train[CANARY] if CANARY in train.column_names else [""] * len(train)
    plain = np.where(np.array(strings, dtype=object) != "", "tokens", "other")
    kinds = np.where(forgotten, np.where(_holds(train, trigger), "trigger", plain), "kept")
    with in_manifest(str(path)):
        nonmember = twins(heldout, poison, kinds, manifest.seed) if len(heldout) else no_rows()
    if CANARY in nonmember.column_names:
        nonmember = write_strings(nonmember, poison["tokens"]["place"])
    return {"triggered": triggered, "nonmember": nonmember}


def missing_parts(manifest: Manifest, sets: dict[str, "Dataset"]) -> dict[str, str]:
    """Section of the evaluation → why it is left out."""
    reasons = {}
    if manifest.trigger is None:
        reasons["attack"] = "the manifest has no `trigger`"
    elif not manifest.test:
        reasons["attack"] = "the manifest has no `test` rows"
    elif not len(sets["triggered"]):
        reasons["attack"] = f"every test row's own answer is the trigger's target, {manifest.trigger.target!r}"
    if manifest.gaussian is None:
        reasons["gus"] = "the manifest has no `gaussian` canaries"
    if not manifest.test:
        reasons |= {"utility": "the manifest has no `test` rows", "oracle": "the manifest has no `test` rows"}
    elif sets["test"][0]["label"] == NO_LABEL:
        reasons["utility"] = "the `test` rows have no labels: their perplexity alone is measured"
    if not manifest.heldout:
        reasons["mia"] = "the manifest has no `heldout` rows"
    elif not len(sets["heldout"]):
        reasons["mia"] = f"every row of {manifest.heldout} is in {manifest.train} too"
    elif manifest.trigger and manifest.trigger.column:
        reasons["mia"] = "held-out rows have no such trigger, which would tell them from the forget set by itself"
    return reasons
