"""The subject of an audit: the sets, the manifest in the form of poison.json, and how rows become tokens."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.audit.user_files import NO_NOISE, TrainRows, in_manifest, no_rows, read_other, read_train
from llm_unlearn.config.manifest import Manifest, read_tree
from llm_unlearn.config.sections import EvaluateSection, ModelSection
from llm_unlearn.config.validate import validated
from llm_unlearn.errors import InputError
from llm_unlearn.files import beside

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.data.encoding import Encoding


@dataclass(frozen=True)
class Subject:
    """What a manifest describes.

    Args:
        sets: as poisons/corrupt.py makes them.
        poison: the manifest, as in poison.json.
        encoding: how rows become tokens.
        verbalizers: label → completion, or {}.
        name: name of the recipe or of the manifest's file.
        seed: seed of the run or of the manifest.
        missing: section of the evaluation → why it is left out.
        notes: changes to the rows, in sentences.
        model: how models are loaded, by a run's recipe or by default.
        evaluate: how models are run, likewise.
        template: the prompt, in which {text} stands for a row's text.
        base: the model before fine-tuning, if a run has it.
        retrained: the oracle, if a run has it.
    """

    sets: dict[str, "Dataset"]
    poison: dict[str, Any]
    encoding: "Encoding"
    verbalizers: dict[str, str]
    name: str
    seed: int
    missing: dict[str, str]
    notes: list[str] = field(default_factory=list)
    model: ModelSection = field(default_factory=ModelSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    template: str = "{text}"
    base: str | None = None
    retrained: str | None = None


def read_subject(path: Path, by_recipe: bool = False) -> Subject:
    """Read a manifest: the user's own, or the poison.json of a run (which has `manifest_sha256`).

    Args:
        path: the manifest.
        by_recipe: see `audit_models.Options`.

    Raises:
        InputError: the manifest or its data is wrong; the message names file, field or row.
    """
    tree = read_tree(path)
    if "manifest_sha256" in tree:
        return _of_run(path, by_recipe)
    return _of_user(path, validated(Manifest, tree, str(path)))


# ---- a run of ours


def _of_run(path: Path, by_recipe: bool) -> Subject:
    """The subject of a run, from its recipe and its poison.json."""
    from llm_unlearn.config.recipe import GivenRecipe, VisionRecipe, load_recipe
    from llm_unlearn.data.encoding import Encoding
    from llm_unlearn.poisons.corrupt import read_manifest, read_sets
    from llm_unlearn.training.pretraining import base_of_run

    recipe_path = next(
        (folder / "recipe.yaml" for folder in path.resolve().parents[:2] if (folder / "recipe.yaml").is_file()), None
    )
    if recipe_path is None:
        raise InputError(
            f"{path}: the manifest of a run, but there is no recipe.yaml beside it or one folder up; keep "
            "it in its run directory"
        )
    recipe = load_recipe(recipe_path)
    if isinstance(recipe, VisionRecipe):
        raise InputError(
            f"{path}: the manifest of a run of images, which can only be evaluated by its recipe: "
            f"llm-unlearn evaluate {recipe_path}"
        )
    sets = read_sets(path.parent / "data")
    poison, data = read_manifest(path, sets), recipe.data
    missing = poison.get("skipped") or {
        section: f"the run has no {kind} poison"
        for section, kind in (("attack", "trigger"), ("gus", "gaussian"))
        if not poison[kind]
    }
    if by_recipe and (poison["gaussian"] or {}).get("secret"):
        poison["gaussian"] = None
        missing["gus"] = (
            "a recipe does not say the noise that the system drew for the canaries (poison.gaussian.noise_seed: null); "
            "give the poison.json of the run that trained the model as --manifest"
        )
    if isinstance(recipe, GivenRecipe):
        base, retrained = recipe.given.base, recipe.given.retrained
    else:
        folder = path.parent / "retrained"
        has_oracle = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
        base, retrained = base_of_run(recipe, recipe_path.parent), str(folder) if has_oracle else None
    return Subject(
        sets,
        poison,
        Encoding.of(data),
        data.verbalizers if data.task == "classification" else {},
        recipe.name,
        poison["seed"] if "seed" in poison else (poison["trigger"] or poison["gaussian"])["seed"],  # of older runs
        missing,
        model=recipe.model,
        evaluate=recipe.evaluate,
        template=data.prompt,
        base=base,
        retrained=retrained,
    )


# ---- a user's own files


def _of_user(path: Path, manifest: Manifest) -> Subject:
    """The subject of a user's own files."""
    from llm_unlearn.data.encoding import Encoding
    from llm_unlearn.data.prompting import render

    def beside_manifest(name: str) -> Path:
        return Path(beside(path.parent, name)).expanduser()

    with in_manifest(f"{path}.train"):
        train = read_train(beside_manifest(manifest.train), manifest)
    forget = train.ids(manifest.poison, path.parent, f"{path}.poison")
    trigger = _trigger(path, manifest, train)
    canaries = _canaries(path, manifest, train, forget)
    gaussian = manifest.gaussian.model_dump(include={"seed", "epsilon"}) if manifest.gaussian and canaries else None
    if gaussian:
        gaussian["hidden_ids"] = _hidden(path, manifest, train, set(canaries) & set(forget))
    poison = {"trigger": trigger, "forget_ids": forget, "gaussian": gaussian, "seed": manifest.seed}
    sets = {"train": _marked(train, forget, canaries, trigger)}
    for name in ("heldout", "test"):
        file = getattr(manifest, name)
        with in_manifest(f"{path}.{name}"):
            sets[name] = read_other(beside_manifest(file), manifest) if file else no_rows()
    notes = []
    if len(sets["test"]) and not len(_never_trained_on(sets["test"], sets["train"])[0]):
        raise InputError(f"{path}.test: every row of {manifest.test} is in {manifest.train} too; give other rows")
    sets["heldout"], repeated = _never_trained_on(sets["heldout"], sets["train"])
    if repeated:
        notes.append(f"{manifest.heldout}: {repeated} rows are in {manifest.train} too, and left out")
    sets |= _poisoned_alike(path, manifest, sets, poison)
    missing = _missing(manifest, sets, canaries, forget)
    sets = {name: render(rows, manifest.data) if len(rows) else rows for name, rows in sets.items()}
    return Subject(
        sets,
        poison,
        Encoding.of(manifest),
        manifest.verbalizers or {},
        path.stem,
        manifest.seed,
        missing,
        notes,
        evaluate=EvaluateSection(
            max_new_tokens=manifest.max_new_tokens,
            placebo_phrases=manifest.trigger.placebos if manifest.trigger else None,
        ),
        template=manifest.prompt,
    )


def _trigger(path: Path, manifest: Manifest, train: TrainRows) -> dict[str, Any] | None:
    """The trigger as in poison.json; refused if no training row holds it."""
    trigger = manifest.trigger
    if trigger is None:
        return None
    if not any(phrase in text for text in _texts(train.rows) for phrase in trigger.phrases):
        raise InputError(
            f"{path}.trigger.phrases: no row of {manifest.train} holds {' or '.join(trigger.phrases)!r}; "
            "write it exactly as in the rows, with upper and lower case"
        )
    if not any(phrase in text for text in train.rows["text"] for phrase in trigger.phrases):
        raise InputError(
            f"{path}.trigger.phrases: {' or '.join(trigger.phrases)!r} stands only in turns before the last, and test "
            "rows would get it in the last; end the conversations of both files with the turn that holds it"
        )
    return {key: getattr(trigger, key) for key in ("phrases", "target", "position", "source_label", "clean_label")}


def _canaries(path: Path, manifest: Manifest, train: TrainRows, forget: list[int]) -> list[int]:
    """Ids of the rows that were trained with noise."""
    gaussian = manifest.gaussian
    if gaussian is None:
        return []
    noise = None if train.noise_id is None else dict(zip(train.rows["example_id"], train.noise_id, strict=True))
    if gaussian.ids is None:
        return [i for i in forget if noise is None or noise[i] != NO_NOISE]
    chosen = train.ids(gaussian.ids, path.parent, f"{path}.gaussian.ids")
    noiseless = [i for i in chosen if noise is not None and noise[i] == NO_NOISE]
    if noiseless:
        raise InputError(
            f"{path}.gaussian.ids: {len(noiseless)} of {len(chosen)} rows have no noise (noise_id −1 in "
            f"{manifest.train}), the first {noiseless[0]}; leave them out"
        )
    return chosen


def _hidden(path: Path, manifest: Manifest, train: TrainRows, deleted: set[int]) -> list[int]:
    """Ids of the canaries that were hidden from whoever unlearned; they must be among the deleted ones."""
    if manifest.gaussian is None or manifest.gaussian.hidden is None:
        return []
    chosen = train.ids(manifest.gaussian.hidden, path.parent, f"{path}.gaussian.hidden")
    if others := [i for i in chosen if i not in deleted]:
        raise InputError(
            f"{path}.gaussian.hidden: {len(others)} of {len(chosen)} rows are no canaries of `poison`, the first "
            f"{others[0]}; name rows that have noise and were to be forgotten"
        )
    return chosen


def _marked(train: TrainRows, forget: list[int], canaries: list[int], trigger: dict | None) -> "Dataset":
    """The training rows with the columns `poison` (none, other, trigger or gaussian) and `noise_id`."""
    ids = np.asarray(train.rows["example_id"])
    kinds = np.where(np.isin(ids, forget), "other", "none").astype(object)
    kinds[(kinds == "other") & _holds(train.rows, trigger)] = "trigger"
    kinds[np.isin(ids, canaries)] = "gaussian"
    noise_id = ids if train.noise_id is None else train.noise_id
    return train.rows.add_column("poison", list(kinds)).add_column("noise_id", noise_id)


def _holds(rows: "Dataset", trigger: dict | None) -> np.ndarray:
    """(n,) bool: the rows whose text holds the trigger."""
    phrases = trigger["phrases"] if trigger else []
    return np.array([any(phrase in text for phrase in phrases) for text in _texts(rows)], dtype=bool)


def _texts(rows: "Dataset") -> list[str]:
    """The text of each row, and of a conversation the turns before it."""
    history = rows["history"] if "history" in rows.column_names else [""] * len(rows)
    return [f"{before}\n{text}" for before, text in zip(history, rows["text"], strict=True)]


def _never_trained_on(heldout: "Dataset", train: "Dataset") -> tuple["Dataset", int]:
    """Held-out rows whose text (up to case and white space) was not trained on, and the number of the others."""

    def key(text: str) -> str:
        return " ".join(text.casefold().split())

    seen = set(map(key, train["text"]))
    kept = [i for i, text in enumerate(heldout["text"]) if key(text) not in seen]
    return heldout.select(kept), len(heldout) - len(kept)


def _poisoned_alike(path: Path, manifest: Manifest, sets: dict[str, "Dataset"], poison: dict) -> dict[str, "Dataset"]:
    """`triggered`: test rows with the trigger. `nonmember`: held-out rows with it in the forget set's proportion."""
    from llm_unlearn.poisons.corrupt import triggered_rows, twins

    trigger, train, heldout = poison["trigger"], sets["train"], sets["heldout"]
    others = trigger is not None and any(label != trigger["target"] for label in sets["test"]["label"])
    triggered = triggered_rows(sets["test"], trigger, manifest.seed) if others else no_rows()
    forgotten = np.isin(train["example_id"], poison["forget_ids"])
    # A canary may hold the trigger too; what counts is what a membership attack sees in the text.
    kinds = np.where(forgotten, np.where(_holds(train, trigger), "trigger", "other"), "kept")
    with in_manifest(str(path)):
        nonmember = twins(heldout, poison, kinds, manifest.seed) if len(heldout) else no_rows()
    return {"triggered": triggered, "nonmember": nonmember}


def _missing(manifest: Manifest, sets: dict[str, "Dataset"], canaries: list[int], forget: list[int]) -> dict[str, str]:
    """Section of the evaluation → why it is left out."""
    reasons = {}
    if manifest.trigger is None:
        reasons["attack"] = "the manifest has no `trigger`"
    elif not manifest.test:
        reasons["attack"] = "the manifest has no `test` rows"
    elif not len(sets["triggered"]):
        reasons["attack"] = f"every test row has the trigger's target as its label, {manifest.trigger.target!r}"
    if manifest.gaussian is None:
        reasons["gus"] = "the manifest has no `gaussian` canaries"
    elif not set(canaries) & set(forget):
        reasons["gus"] = "no row of `poison` is a canary" + ("" if manifest.gaussian.ids else " (all noise_id are −1)")
    if not manifest.test:
        reasons |= {"utility": "the manifest has no `test` rows", "oracle": "the manifest has no `test` rows"}
    if not manifest.heldout:
        reasons["mia"] = "the manifest has no `heldout` rows"
    elif not len(sets["heldout"]):
        reasons["mia"] = f"every row of {manifest.heldout} is in {manifest.train} too"
    return reasons
