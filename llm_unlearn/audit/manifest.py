"""What was poisoned, as a user writes it by hand, or as a run of ours left it in its poison.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.sections import DataSection
from llm_unlearn.strict import build, read_yaml

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.data.encoding import Encoding


@dataclass(frozen=True)
class ManifestTrigger:
    """The trigger phrase and the label (or completion) that it asks for; where test rows get it."""

    phrases: list[str]
    target: str
    position: Literal["start", "end", "random"] = "random"


@dataclass(frozen=True)
class ManifestGaussian:
    """Canaries: the seed of their noise, and which poisoned rows they are (null: all that have a noise id, or all).

    `ids` as in `poison`. The noise of a row is that of its column `noise_id`, or else of its row number.
    """

    seed: int
    epsilon: float | None = None  # not needed: scores do not depend on it
    ids: list[int] | str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a user says of their own poisoned data. Paths are relative to the manifest.

    `train` holds the rows as they were trained on; `poison` says which of them are to be forgotten: row numbers from 0,
    a file of them, or `column:NAME` (see data/forget.py). `heldout` rows were never trained on (membership inference);
    `test` rows are labelled and clean (utility, attack). What a part is missing for is left out, with the reason.
    """

    train: str
    poison: list[int] | str
    heldout: str | None = None
    test: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    prompt: str = "{text}"
    verbalizers: dict[str, str] = field(default_factory=dict)
    chat_template: bool = False
    max_length: int = 512
    loss_on: Literal["text", "completion"] = "text"
    trigger: ManifestTrigger | None = None
    gaussian: ManifestGaussian | None = None
    seed: int = 0  # of where the trigger lands in test rows

    @property
    def data(self) -> DataSection:
        """The same as a recipe's section, for what reads and renders rows."""
        return DataSection(
            text_column=self.text_column, label_column=self.label_column, prompt=self.prompt,
            task="classification" if self.verbalizers else "completion", verbalizers=self.verbalizers,
            chat_template=self.chat_template, max_length=self.max_length, loss_on=self.loss_on)


@dataclass(frozen=True)
class Subject:
    """What is audited with: the sets, the manifest in the form of poison.json, how rows become tokens."""

    sets: dict[str, "Dataset"]
    poison: dict[str, Any]
    encoding: "Encoding"
    verbalizers: dict[str, str]
    name: str
    missing: dict[str, str]


def read_subject(path: Path) -> Subject:
    """What a manifest stands for, the user's or one of ours; see the module."""
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping with `train` and `poison`, found {type(tree).__name__}")
    return _own_run(path) if "manifest_sha256" in tree else _users(path, build(Manifest, tree, str(path)))


def _own_run(path: Path) -> Subject:
    from llm_unlearn.data.encoding import Encoding
    from llm_unlearn.poisons.corrupt import read_manifest, read_sets
    from llm_unlearn.recipe import load_recipe

    recipe_path = next((folder / "recipe.yaml" for folder in path.resolve().parents[:2]
                        if (folder / "recipe.yaml").is_file()), None)
    if recipe_path is None:
        raise InputError(f"{path}: the manifest of a run, but no recipe.yaml stands beside it or one folder up; keep "
                         "it in its run directory")
    recipe, sets = load_recipe(recipe_path), read_sets(path.parent / "data")
    data = recipe.data
    verbalizers = data.verbalizers if data.task == "classification" else {}
    poison = read_manifest(path, sets)
    missing = {kind: f"the run has no {what}" for kind, what in (("attack", "trigger"), ("gus", "canaries"))
               if not poison["trigger" if kind == "attack" else "gaussian"]}
    return Subject(sets, poison, Encoding(data.max_length, data.loss_on, data.chat_template), verbalizers, recipe.name,
                   missing)


def _users(path: Path, manifest: Manifest) -> Subject:
    from llm_unlearn.data.encoding import Encoding
    from llm_unlearn.data.forget import COLUMN, read_forget_ids
    from llm_unlearn.poisons.corrupt import triggered_rows, twins

    def file(name: str) -> Path:
        return path.parent / Path(name).expanduser()

    def ids(given: list[int] | str, rows: "Dataset") -> list[int]:
        is_file = isinstance(given, str) and not given.startswith(COLUMN)
        return read_forget_ids(str(file(given)) if is_file else given, rows)

    train = _read(file(manifest.train), manifest)
    forget = ids(manifest.poison, train)
    number = {example_id: i for i, example_id in enumerate(train["example_id"])}
    gaussian = manifest.gaussian
    canaries = []
    if gaussian:
        noise_ids = train["noise_id"] if "noise_id" in train.column_names else [0] * len(train)
        own = [i for i in forget if noise_ids[number[i]] >= 0]
        canaries = own if gaussian.ids is None else ids(gaussian.ids, train)
    if manifest.trigger and manifest.verbalizers and manifest.trigger.target not in manifest.verbalizers:
        raise InputError(f"{path}.trigger.target: '{manifest.trigger.target}' has no verbalizer; known labels: "
                         f"{', '.join(manifest.verbalizers)}")
    trigger = None if manifest.trigger is None else {
        "phrases": manifest.trigger.phrases, "target": manifest.trigger.target, "position": manifest.trigger.position,
        "source_label": None, "clean_label": False}
    kinds = np.full(len(train), "none", dtype=object)
    for kind, chosen in (("other", forget), ("gaussian", canaries)):
        kinds[[number[i] for i in chosen]] = kind
    if trigger:
        holds = np.array([any(phrase in text for phrase in trigger["phrases"]) for text in train["text"]])
        kinds[(kinds == "other") & holds] = "trigger"
    sets = {"train": train.add_column("poison", list(kinds))}
    for name, given in (("heldout", manifest.heldout), ("test", manifest.test)):
        sets[name] = _read(file(given), manifest) if given else _nothing()
    poison = {"trigger": trigger, "gaussian": {"seed": gaussian.seed} if gaussian else None, "forget_ids": forget}
    forgotten = np.where(np.isin(train["example_id"], forget), kinds, "kept")
    has_attack = trigger and manifest.test
    sets["triggered"] = triggered_rows(sets["test"], trigger, manifest.seed) if has_attack else _nothing()
    sets["nonmember"] = twins(sets["heldout"], poison, forgotten, manifest.seed) if manifest.heldout else _nothing()
    return Subject(_rendered(sets, manifest), poison, Encoding(manifest.max_length, manifest.loss_on,
                                                              manifest.chat_template),
                   manifest.verbalizers, path.stem, _missing(manifest))


def _missing(manifest: Manifest) -> dict[str, str]:
    """Section → why it is left out."""
    found = {}
    if not manifest.trigger or not manifest.test:
        found["attack"] = "the manifest has no `trigger`" if not manifest.trigger else "the manifest has no `test` rows"
    if not manifest.gaussian:
        found["gus"] = "the manifest has no `gaussian` canaries"
    if not manifest.test:
        found["utility"] = "the manifest has no `test` rows"
    if not manifest.heldout:
        found["mia"] = "the manifest has no `heldout` rows"
    return {**found, "cost": "the training is not known"}


def _read(path: Path, manifest: Manifest) -> "Dataset":
    """Rows of a user's file with text, label, example_id (the row number) and the columns asked for by name."""
    from llm_unlearn.data.loading import load_source
    from llm_unlearn.data.prompting import normalise
    from llm_unlearn.data.readers import file_format, read_text_file

    columns = {"text": manifest.text_column, "label": manifest.label_column}
    rows = normalise(load_source(None, [path], columns=columns), manifest.data, str(path))
    rows = rows.add_column("example_id", np.arange(len(rows)))
    if file_format(path) == ".parquet":
        import pyarrow.parquet

        records = pyarrow.parquet.read_table(path).to_pylist()
    else:
        records = [record for _, record in read_text_file(path)]
    wanted = {"noise_id"} | {given.removeprefix("column:") for given in
                             (manifest.poison, manifest.gaussian and manifest.gaussian.ids)
                             if isinstance(given, str) and given.startswith("column:")}
    for name in sorted(wanted - set(rows.column_names)):
        if any(name in record for record in records):
            values = [record.get(name) for record in records]
            rows = rows.add_column(name, [-1 if v is None else v for v in values] if name == "noise_id" else values)
    return rows


def _nothing() -> "Dataset":
    """The rows of a set that the manifest does not have."""
    from datasets import Dataset

    return Dataset.from_dict({name: [] for name in ("text", "label", "prompt", "completion", "example_id")})


def _rendered(sets: dict[str, "Dataset"], manifest: Manifest) -> dict[str, "Dataset"]:
    from llm_unlearn.data.prompting import render

    return {name: render(rows, manifest.data) if len(rows) else rows for name, rows in sets.items()}
