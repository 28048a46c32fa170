"""The subject of an audit: the sets, the manifest in the form of poison.json, and how rows become tokens."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.halves import Half, deciding_ids
from llm_unlearn.audit.user_files import NO_LABEL, in_manifest, no_rows, read_other, read_test, read_train
from llm_unlearn.audit.user_poison import (
    canaries_of,
    hidden_of,
    marked,
    missing_parts,
    never_trained_on,
    poisoned_alike,
    token_canaries_of,
    tokens_of,
    trigger_of,
)
from llm_unlearn.config.manifest import Manifest, read_tree
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.config.sections import EvaluateSection
from llm_unlearn.config.validate import validated
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.canary_ranks import check_strings
from llm_unlearn.files import beside
from llm_unlearn.poisons.trigger_phrase import holds

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
        part: the half of a search that a run is of, "tuning" or "verdict", if it is of one.
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
    part: str | None = None


def read_subject(path: Path, by_recipe: bool = False, half: Half | None = None) -> Subject:
    """Read a manifest: the user's own, or the poison.json of a run (which has `manifest_sha256`).

    Args:
        path: the manifest.
        by_recipe: see `audit_models.Options`.
        half: of a user's own: what is measured, in a search.

    Raises:
        InputError: the manifest or its data is wrong; the message names file, field or row.
    """
    tree = read_tree(path)
    if "manifest_sha256" in tree:
        return _of_run(path, by_recipe)
    return _of_user(path, validated(Manifest, tree, str(path)), half)


# ---- a run of ours


def _of_run(path: Path, by_recipe: bool) -> Subject:
    """The subject of a run, from its recipe and its poison.json."""
    from llm_unlearn.config.recipe import GivenRecipe, VisionRecipe
    from llm_unlearn.config.recipe_files import load_recipe
    from llm_unlearn.data.encoding import Encoding
    from llm_unlearn.poisons.stored import read_manifest, read_sets, seed_of
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
    if by_recipe and poison.get("tokens", {}).get("secret"):
        del poison["tokens"]
        poison["withheld"] = ["tokens"]
        missing["canary_rank"] = (
            "a recipe does not say the strings that the system drew (poison.tokens.string_seed: null); give the "
            "poison.json of the run that trained the model as --manifest"
        )
    if by_recipe and (poison["gaussian"] or {}).get("secret"):
        poison["gaussian"], poison["withheld"] = None, [*poison.get("withheld", []), "gaussian"]
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
        seed_of(poison),
        missing,
        model=recipe.model,
        evaluate=recipe.evaluate,
        template=data.prompt,
        base=base,
        retrained=retrained,
        part=recipe.given.half if isinstance(recipe, GivenRecipe) else None,
    )


# ---- a user's own files


def _of_user(path: Path, manifest: Manifest, half: Half | None = None) -> Subject:
    """The subject of a user's own files."""
    from llm_unlearn.data.encoding import Encoding
    from llm_unlearn.data.prompting import render

    def beside_manifest(name: str) -> Path:
        return Path(beside(path.parent, name)).expanduser()

    with in_manifest(f"{path}.train"):
        train = read_train(beside_manifest(manifest.train), manifest)
    forget = train.ids(manifest.poison, path.parent, f"{path}.poison")
    trigger = trigger_of(path, manifest, train, forget)
    canaries = canaries_of(path, manifest, train, forget)
    hidden = hidden_of(path, manifest, train, set(canaries) & set(forget))
    if half is not None and canaries:
        with in_manifest(f"{path}.gaussian"):
            canaries, hidden = half.canaries(canaries, set(forget), hidden)
    gaussian = manifest.gaussian.model_dump(include={"seed", "epsilon"}) if manifest.gaussian and canaries else None
    if gaussian:
        gaussian["hidden_ids"] = hidden
    poison = {"trigger": trigger, "forget_ids": forget, "gaussian": gaussian, "seed": manifest.seed}
    strings = token_canaries_of(path, manifest, train, forget)
    measured = list(strings)
    if tokens := tokens_of(path, manifest, train, strings, forget):
        poison["tokens"] = tokens
    with in_manifest(f"{path}.tokens"):
        if tokens and half is not None:
            planted = measured, set(forget), tokens["hidden_ids"]
            measured, _ = half.canaries(*planted)
            tokens["hidden_ids"] = deciding_ids(*planted)  # no method sees either half's
        sets = {"train": marked(train, forget, canaries, trigger, strings, measured)}
    for name in ("heldout", "test"):
        file = getattr(manifest, name)
        with in_manifest(f"{path}.{name}"):
            read = read_test if name == "test" else read_other
            sets[name] = read(beside_manifest(file), manifest) if file else no_rows()
            if half is not None and name == "test":  # before anything is made of these rows
                sets[name] = _half_of(sets[name], half)
    notes = []
    for name in ("test", "heldout"):
        sets[name], repeated = never_trained_on(sets[name], sets["train"])
        if repeated:
            notes.append(f"{getattr(manifest, name)}: {repeated} rows are in {manifest.train} too, and left out")
    if manifest.test and not len(sets["test"]):
        where = f"in {manifest.train} too" if half is None else f"in {manifest.train} or the other half too"
        raise InputError(f"{path}.test: every row of {manifest.test} is {where}; give other rows")
    if trigger and (held := sum(holds(row, trigger["phrases"]) for row in sets["test"])):
        notes.append(f"{manifest.test}: {held} rows hold the trigger already, and are left out of the attack")
    sets |= poisoned_alike(path, manifest, sets, poison)
    missing = missing_parts(manifest, sets)
    if half is not None and half.part == "tuning" and "mia" not in missing:
        sets["nonmember"], missing["mia"] = no_rows(), "membership turns no choice"
    as_text = manifest.data.changed(task="completion", verbalizers={})
    for name, rows in sets.items():
        known = len(rows) and rows[0]["label"] != NO_LABEL
        sets[name] = render(rows, manifest.data if known else as_text) if len(rows) else rows
    if tokens:
        canary_rows = sets["train"].filter(lambda kind: kind == "tokens", input_columns="poison", desc="token canaries")
        check_strings(canary_rows, tokens["words"], f"{path}.tokens")
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


def _half_of(test: "Dataset", half: Half) -> "Dataset":
    """One half of the test rows; the verdict half is without those whose text is in the tuning half too."""
    mine = test.select(half.positions(len(test), "test rows"))
    if half.part == "tuning":
        return mine
    return never_trained_on(mine, test.select(replace(half, part="tuning").positions(len(test), "test rows")))[0]
