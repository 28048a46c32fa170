"""Step 1 of the protocol: S_corr, which is S_clean with a poisoned subset; the evaluation sets; the manifest.

The manifest (`poison.json`) lists the poisoned rows by ids and seeds and holds the hash of its data.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.data.benchmarks.benchmark_sets import FORGET
from llm_unlearn.data.columns import with_column
from llm_unlearn.data.forget import COLUMN, read_forget_ids
from llm_unlearn.data.prompting import render
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.gaussian_embedding import choose_canaries
from llm_unlearn.poisons.selection import choose_hidden
from llm_unlearn.poisons.stored import data_hash, storable
from llm_unlearn.poisons.token_canaries import CANARY, choose_token_canaries, fresh_strings, write_strings
from llm_unlearn.poisons.trigger_phrase import can_be_poisoned, holds, insert_triggers, plant_trigger
from llm_unlearn.tasks.noise import NO_NOISE

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.data_sections import DataSection, GaussianSection, TokensSection
    from llm_unlearn.config.recipe import Recipe
    from llm_unlearn.config.sections import UnlearnSection
    from llm_unlearn.data.splits import Splits


def corrupt(
    splits: "Splits", recipe: "Recipe", seed: int, secret: str | None = None
) -> tuple[dict[str, "Dataset"], dict[str, Any]]:
    """Poison the training split and make the sets on which the poison is measured.

    Args:
        splits: the clean rows.
        recipe: its `poison`, `unlearn` and `data` sections are read.
        seed: seed of every draw.
        secret: of an earlier manifest, for the noise that it gave; see `plant_canaries`.

    Returns:
        the sets and the manifest. The sets are `train` (corrupted; columns text, label, prompt, completion, poison,
        example_id, noise_id, and right_completion, the completion as it was before), `heldout`, `test`, `triggered`
        (test rows with another label than the target, trigger inserted; empty without a trigger), and `nonmember`
        (held-out rows poisoned in the forget set's proportion, so that the trigger itself does not tell members from
        non-members).

    Raises:
        InputError: no row is poisoned, or the forget set is empty or holds all rows.
    """
    section, train = recipe.poison, splits.train
    manifest: dict[str, Any] = {"schema_version": 1, "seed": seed, "trigger": None, "gaussian": None}
    manifest["train_size"] = len(train)
    kinds = np.full(len(train), "none", dtype=object)
    ids = np.asarray(train["example_id"])
    if section.trigger:
        arguments = {
            k: getattr(section.trigger, k)
            for k in ("phrases", "target", "fraction", "position", "source_label", "clean_label")
        }
        train, manifest["trigger"] = plant_trigger(train, seed=seed, **arguments)
        kinds[np.isin(ids, manifest["trigger"]["example_ids"])] = "trigger"
    if section.gaussian:
        eligible = kinds == "none"
        if recipe.benchmark is not None:  # canaries are to be forgotten with the rows that carry them
            eligible &= np.asarray(train[FORGET])
        train, manifest["gaussian"] = choose_canaries(
            train,
            fraction=section.gaussian.fraction,
            epsilon=section.gaussian.epsilon,
            seed=seed,
            noise_seed=run_seed(section.gaussian.noise_seed, seed),
            eligible=eligible,
            secret=secret,
        )
        manifest["gaussian"] |= _as_planted(section.gaussian)
        kinds[np.isin(ids, manifest["gaussian"]["example_ids"])] = "gaussian"
    else:
        train = train.add_column("noise_id", np.full(len(train), NO_NOISE))
    if section.tokens:
        train, manifest["tokens"] = choose_token_canaries(
            train,
            **section.tokens.model_dump(include={"fraction", "length", "place"}),
            seed=seed,
            string_seed=run_seed(section.tokens.string_seed, seed),
            eligible=kinds == "none",
            secret=secret,
        )
        manifest["tokens"] |= _as_planted(section.tokens)
        kinds[np.isin(ids, manifest["tokens"]["example_ids"])] = "tokens"
    train = train.add_column("poison", list(kinds))
    forgetting = recipe.unlearn.changed(forget_ids=COLUMN + FORGET) if recipe.benchmark else recipe.unlearn
    manifest |= forget_set(train, ids, kinds, forgetting, seed)
    if recipe.benchmark:  # its forget rows are no mistakes
        manifest["benchmark"] = {"name": recipe.benchmark.name, "split": recipe.benchmark.forgotten}
        manifest["false_positive_ids"] = []
    hide_deleted(manifest)
    kinds = np.where(np.isin(ids, manifest["forget_ids"]), kinds, "kept")  # non-members mirror the forget set
    right = render(splits.train, recipe.data)
    sets = {"train": train, "heldout": splits.heldout, "test": splits.test}
    sets["triggered"] = triggered_rows(splits.test, manifest["trigger"], seed)
    sets["nonmember"] = twins(splits.heldout, manifest, kinds, seed)
    for name, rows in sets.items():
        if len(rows):
            marked = "poison" in rows.column_names
            labelled = rows if marked else rows.add_column("poison", ["none"] * len(rows))
            sets[name] = _rendered(labelled, recipe.data, manifest)
    sets["train"] = sets["train"].add_column("right_completion", list(right["completion"]))
    sets = storable(sets)
    manifest["data_sha256"] = data_hash(sets)
    return sets, manifest


def _rendered(rows: "Dataset", section: "DataSection", manifest: dict[str, Any]) -> "Dataset":
    """Rows with prompt and completion, and with their strings where they are token canaries."""
    if CANARY not in rows.column_names:
        return render(rows, section)
    if manifest["tokens"]["place"] == "text":
        return render(write_strings(rows, "text"), section)
    return write_strings(render(rows, section), "answer")


def _as_planted(section: "GaussianSection | TokensSection") -> dict[str, Any]:
    """What the manifest says of canaries beside which they are."""
    often = {"exposures": section.exposures} if section.exposures > 1 else {}
    return {"audit_share": section.audit_share, **often}


def run_seed(seed_of_recipe: int | None, seed: int) -> int | None:
    """The seed of one run's noise or strings, where a recipe fixes one: no two seeds share them."""
    return None if seed_of_recipe is None else seed_of_recipe + seed


def hide_deleted(manifest: dict[str, Any]) -> None:
    """Choose which canaries of a manifest are hidden, among those in its forget set."""
    for canaries in filter(None, (manifest["gaussian"], manifest.get("tokens"))):
        deleted = set(canaries["example_ids"]) & set(manifest["forget_ids"])
        canaries["hidden_ids"] = choose_hidden(deleted, canaries["audit_share"], canaries["seed"])


def forget_set(train: "Dataset", ids: np.ndarray, kinds: np.ndarray, section: "UnlearnSection", seed: int) -> dict:
    """Choose the forget set: the ids that the recipe names, or a fraction of each kind of poison.

    In the second case, the recipe may add false positives: clean rows taken for poison.

    Args:
        train: the corrupted training rows.
        ids: (n,) their example ids.
        kinds: (n,) their poison, or "none".
        section: the recipe's `unlearn` section.
        seed: seed of the draw.

    Returns:
        {"forget_ids", "forget_fraction": the share of the poison in the forget set, "false_positive_ids"}.

    Raises:
        InputError: the forget set is empty or holds all rows, or there are too few clean rows.
    """
    poison, clean = ids[kinds != "none"], ids[kinds == "none"]
    fraction = section.forget_fraction
    if section.forget_ids is not None:
        chosen = read_forget_ids(section.forget_ids, train, "unlearn.forget_ids")
        fraction = float(np.isin(poison, chosen).mean()) if len(poison) else 1.0
    else:
        generator, chosen = np.random.default_rng([seed, 3]), []
        for kind in sorted(set(kinds) - {"none"}, reverse=True):
            rows = ids[kinds == kind]
            chosen.extend(generator.permutation(rows)[: round(fraction * len(rows))].tolist())
        count = round(section.false_positives * len(chosen))
        if count > len(clean):
            raise InputError(f"unlearn.false_positives: asks for {count} clean rows, but there are {len(clean)}")
        chosen.extend(np.random.default_rng([seed, 6]).choice(clean, size=count, replace=False).tolist())
    if not chosen:
        raise InputError(
            f"unlearn.forget_fraction: {fraction} of {len(poison)} poisoned rows rounds "
            "to an empty forget set; raise it"
        )
    if len(chosen) == len(ids):
        raise InputError("the forget set is the whole training set: nothing would be retained; lower poison.*.fraction")
    return {
        "forget_ids": sorted(chosen),
        "forget_fraction": fraction,
        "false_positive_ids": sorted(set(chosen) & set(clean.tolist())),
    }


def triggered_rows(test: "Dataset", trigger: dict | None, seed: int) -> "Dataset":
    """The test rows that show the attack, trigger inserted: those with the source label, or else another than the
    target, that do not hold the trigger as they are (theirs would be no answers without it); none without a trigger.
    """
    if trigger is None:
        return test.select([])
    source, target = trigger["source_label"], trigger["target"]
    rows = test.filter(lambda row: can_be_poisoned([row["label"]], target, source)[0], desc="triggered test set")
    if not len(rows):
        which = f"has the label '{target}'" if source is None else f"has another label than '{source}'"
        raise InputError(
            f"poison.trigger.target: every test row {which}, so the attack cannot be measured; choose another target, "
            "or add test rows with other labels"
        )
    rows = rows.filter(lambda row: not holds(row, trigger["phrases"]), desc="test rows without the trigger")
    if not len(rows):
        raise InputError(
            "poison.trigger.phrases: every test row holds the trigger already, so nothing shows what it does; give "
            "clean test rows"
        )
    return _insert(rows, trigger, np.random.default_rng([seed, 4]))


def twins(heldout: "Dataset", manifest: dict, kinds: np.ndarray, seed: int) -> "Dataset":
    """Held-out rows with the trigger, and with strings as of token canaries, in the forget set's proportion.

    Args:
        heldout: clean rows.
        manifest: its `trigger` section is read.
        kinds: (n,) of the training rows: "trigger" or another poison in the forget set, "kept" outside it.
        seed: seed of the draw.
    """
    trigger = manifest["trigger"]
    share = float((kinds == "trigger").sum() / max((kinds != "kept").sum(), 1))
    if trigger is None or share == 0:
        return _strung(heldout, manifest, kinds, seed, 0)
    labels = heldout["label"]
    allowed = np.flatnonzero(
        can_be_poisoned(labels, trigger["target"], trigger["source_label"], trigger["clean_label"])
    )
    generator = np.random.default_rng([seed, 5])
    chosen, others = choose_twins(len(heldout), allowed, share, generator)
    triggered = _insert(heldout.select(chosen), trigger, generator)
    triggered = with_column(triggered, "label", [trigger["target"]] * len(triggered))
    from datasets import concatenate_datasets

    both = concatenate_datasets([triggered, heldout.select(others).select_columns(triggered.column_names)])
    return _strung(both, manifest, kinds, seed, len(chosen))


def _strung(rows: "Dataset", manifest: dict, kinds: np.ndarray, seed: int, triggered: int) -> "Dataset":
    """Held-out rows with fresh strings in the column `canary`, in the forget set's proportion, but for the first, which
    are triggered; as they are without token canaries.
    """
    tokens, n_forgotten = manifest.get("tokens"), max(int((kinds != "kept").sum()), 1)
    if not tokens or not (kinds == "tokens").any():
        return rows
    count = min(round(int((kinds == "tokens").sum()) / n_forgotten * len(rows)), len(rows) - triggered)
    places = triggered + np.random.default_rng([seed, 24]).permutation(len(rows) - triggered)[:count]
    column = np.full(len(rows), "", dtype=object)
    for place in places:  # ids below 0 are of no canary
        (column[place],) = fresh_strings(tokens, -2 - int(place), tokens["length"], 1)
    return rows.add_column(CANARY, list(column))


def choose_twins(
    n_heldout: int, allowed: np.ndarray, share: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose held-out rows to get the trigger, and others to stay clean, in the forget set's proportion.

    Args:
        n_heldout: number of held-out rows.
        allowed: positions of the rows that may get the trigger.
        share: share of the forget set that has the trigger, above 0.
        generator: makes the choice.

    Returns:
        the positions of both, each sorted.

    Raises:
        InputError: no row would get the trigger.
    """
    n = min(n_heldout, int(len(allowed) / share))
    if not round(share * n):
        raise InputError(
            "data.heldout_size: no held-out row can get the trigger, so the membership test has no triggered "
            "non-members; raise it"
        )
    chosen = generator.permutation(allowed)[: round(share * n)]
    others = generator.permutation(np.setdiff1d(np.arange(n_heldout), chosen))[: n - len(chosen)]
    return np.sort(chosen), np.sort(others)


def _insert(rows: "Dataset", trigger: dict, generator: np.random.Generator) -> "Dataset":
    """The rows with the trigger in their text."""
    return with_column(rows, "text", insert_triggers(rows["text"], trigger, generator))
