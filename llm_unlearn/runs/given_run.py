"""A recipe whose model is poisoned already: what a manifest and the given models stand for in a run."""

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.audit.halves import Half
from llm_unlearn.audit.loader import Checkpoint, Loader, added_tokens, check_same_tokens
from llm_unlearn.audit.subject import Subject, read_subject
from llm_unlearn.config.manifest import Manifest, read_tree
from llm_unlearn.config.validate import validated
from llm_unlearn.data.columns import with_column
from llm_unlearn.data.encoding import Encoding
from llm_unlearn.data.forget import COLUMN
from llm_unlearn.errors import InputError
from llm_unlearn.files import beside, file_stamps, fingerprint, read_json
from llm_unlearn.runs.language_run import LanguageRun
from llm_unlearn.tasks.noise import NO_NOISE

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.recipe import GivenRecipe
    from llm_unlearn.metrics.results import Evaluation
    from llm_unlearn.runs.stages import Stage

logger = logging.getLogger(__name__)

NO_ORACLE = "no retrained model was given"


class GivenRun(LanguageRun):
    """One seed of a recipe with the section `given`, in its own folder. No model is made but by a method."""

    recipe: "GivenRecipe"

    @cached_property
    def loader(self) -> Loader:
        """Finds and loads the given models, as `audit` does."""
        recipe = self.recipe
        data = recipe.data
        verbalizers = data.verbalizers if data.task == "classification" else {}
        subject = Subject(
            {},
            {},
            Encoding.of(data),
            verbalizers,
            recipe.name,
            self.seed,
            {},
            model=recipe.model,
            evaluate=recipe.evaluate,
        )
        return Loader(subject, recipe.given.base, {}, None)

    @cached_property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """poisoned, and retrained where it is given → the model, which exists.

        Raises:
            InputError: a model does not exist, or has another tokenizer than the poisoned one.
        """
        found: dict[str, Checkpoint] = {}
        for name in ("base", "poisoned", "retrained"):  # in turn, since an adapter is looked up with its base
            if (source := getattr(self.recipe.given, name)) is not None:
                try:
                    found[name] = self.loader.find(source)
                except InputError as error:
                    raise InputError(f"recipe.given.{name}: {error}") from None
        found.pop("base", None)
        if "retrained" in found:
            own, other = (self.loader.tokenizer(each) for each in found.values())
            check_same_tokens(own, other, *(each.source for each in found.values()))
        return found

    @cached_property
    def tokenizer(self) -> Any:
        return self.loader.tokenizer(self.checkpoints["poisoned"])

    @cached_property
    def base(self) -> str | None:  # type: ignore[override]  # a full model need not have one
        return self.recipe.given.base or self.checkpoints["poisoned"].base

    @cached_property
    def base_lacks(self) -> str | None:
        """Why the base cannot be measured; None where it can."""
        if self.base is None:
            return "no base was given"
        found = self.loader.find(self.base)
        if added := added_tokens(self.tokenizer, own := self.loader.tokenizer(found)):
            return f"{self.base} has no embedding for {', '.join(map(repr, added[:3]))}"
        check_same_tokens(self.tokenizer, own, self.checkpoints["poisoned"].source, self.base)
        return None

    @property
    def is_adapter(self) -> bool:
        return self.checkpoints["poisoned"].base is not None

    @property
    def plain_models(self) -> list[str]:
        oracle = ["retrained"] * ("retrained" in self.checkpoints)
        return [*oracle, *(["base"] if self.base_lacks is None else []), "poisoned"]

    @cached_property
    def corruption(self) -> list[Any]:
        """The manifest and the files that it names; in a search also which half is measured."""
        path = Path(self.recipe.given.manifest).expanduser()
        manifest = validated(Manifest, read_tree(path), str(path))
        named = [manifest.train, manifest.heldout, manifest.test, manifest.poison]
        for canaries in (manifest.gaussian, manifest.tokens):
            named += [canaries.ids, canaries.hidden] if canaries else []
        files = [beside(path.parent, name) for name in named if isinstance(name, str) and not name.startswith(COLUMN)]
        if manifest.trigger and manifest.trigger.success and manifest.trigger.success.classifier:
            files.append(manifest.trigger.success.classifier)
        measured = [] if self.half is None else [vars(self.half)]
        said = manifest.model_dump(exclude=None if manifest.tokens else {"tokens"})
        return ["given", said, file_stamps(files), *measured]

    @property
    def clean_training(self) -> list[Any]:
        fields = {"learning_rate", "batch_size", "gradient_accumulation_steps", "optim"}
        return [self.recipe.train.model_dump(include=fields)]

    @property
    def half(self) -> Half | None:
        """What is measured, in a search."""
        given = self.recipe.given
        return None if given.half is None else Half(given.half, given.half_seed)

    def choice(self, before: "dict[str, Stage]") -> str | None:
        """Of a verdict half all that makes the models of this recipe, and the draw of the halves."""
        if self.recipe.given.half != "verdict":
            return None
        made = sorted(stage.key for name, stage in before.items() if name.startswith("unlearned/"))
        return fingerprint([self.recipe.given.half_seed, made])

    def rows_key(self, before: "dict[str, Stage]") -> str:
        """In a search the methods get the same rows whichever half is measured, so that a model need not be made again
        for the verdict.
        """
        if self.half is None:
            return super().rows_key(before)
        return fingerprint([*self.corruption[:-1], "halves"])

    def corrupted(self, work_dir: Path) -> tuple[dict[str, "Dataset"], dict[str, Any]]:
        """The sets that the manifest names, and the manifest in the form of a run's."""
        from llm_unlearn.audit.row_checks import check_prompts
        from llm_unlearn.audit.user_files import in_manifest
        from llm_unlearn.poisons.stored import data_hash, storable
        from llm_unlearn.poisons.token_canaries import hide_token_canaries

        path = Path(self.recipe.given.manifest).expanduser()
        subject = replace(read_subject(path, half=self.half), evaluate=self.recipe.evaluate)
        for note in subject.notes:
            logger.info(note)
        with in_manifest(str(path)):
            check_prompts(subject, self.tokenizer)
        train, poison = subject.sets["train"], dict(subject.poison)
        if tokens := poison.get("tokens"):
            if not self.recipe.evaluate.loss_rank_draws:
                raise InputError(
                    "recipe.evaluate.loss_rank_draws: 0 leaves out the one test that token canaries "
                    f"({path}.tokens) have; give 19 or more"
                )
            with in_manifest(f"{path}.tokens"):
                hide_token_canaries(train, tokens)  # refused now where a method would be told what is hidden
        kinds, ids = np.asarray(train["poison"]), np.asarray(train["example_id"])
        if len(poison["forget_ids"]) in (0, len(train)):
            which = "no row" if not poison["forget_ids"] else "every row"
            raise InputError(
                f"{path}.poison: names {which} of the training set; something is to be forgotten, and kept"
            )
        noise_id = np.where(kinds == "gaussian", np.asarray(train["noise_id"]), NO_NOISE)
        train = with_column(train, "noise_id", noise_id)
        for kind in ("trigger", "gaussian", "tokens"):
            if poison.get(kind):
                poison[kind] = {**poison[kind], "example_ids": ids[kinds == kind].tolist()}
        sets = storable({**subject.sets, "train": train})
        poison |= {
            "schema_version": 1,
            "given": True,
            "train_size": len(train),
            "forget_fraction": 1.0,
            "skipped": subject.missing,
            "data_sha256": data_hash(sets),
        }
        return sets, poison

    def load(self, folder: Path, to_evaluate: bool, in_parts: bool) -> Any:
        from llm_unlearn.models.load import load_checkpoint

        if (given := self.checkpoints.get(folder.name)) is None or folder.parent != self.folder:
            return super().load(folder, to_evaluate, in_parts)
        device_map = self.recipe.evaluate.device_map if to_evaluate else None
        return load_checkpoint(given.source, self.recipe.model, given.base, device_map, in_parts)

    def forget_and_retain(self) -> tuple["Dataset", "Dataset"]:
        """As in any run; where the manifest does not say ε, canaries are plain text."""
        forget, retain = super().forget_and_retain()
        if self._noise is not None:
            return forget, retain
        forget, retain = (with_column(part, "noise_id", [NO_NOISE] * len(part)) for part in (forget, retain))
        return forget, retain

    @property
    def _noise(self) -> dict[str, Any] | None:
        """The canaries' noise, as far as it can be injected."""
        noise = self.manifest["gaussian"]
        return noise if noise and noise.get("epsilon") is not None else None

    def unlearning(self) -> tuple[Any, dict[str, Any]]:
        from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise

        model = self.model("poisoned", common=True)
        if self._noise is not None:
            inject_gaussian_noise(model, self._noise)
        return model, {"processing_class": self.tokenizer}

    def clean_start(self) -> Any:
        from llm_unlearn.models.load import load_model

        if self.is_adapter:
            return None
        assert self.base is not None  # or the method is refused
        return load_model(self.base, self.recipe.model, in_parts=True)

    # ---- what is spent, and what is said of a result

    @cached_property
    def _known(self) -> dict[str, Any]:
        return read_json(self.folder / "given" / "poisoned.json")

    @property
    def training_flops(self) -> float | None:
        return self._known["flops"]

    def limits(self, budget: float) -> dict[str, float]:
        unit = self.recipe.unlearn.budget_in
        if unit in ("steps", "tokens"):
            return {f"max_{unit}": int(budget)}
        if unit == "epochs":  # in a search each candidate gets as much, also one that sees no forget row
            passes = None if self.half is None else budget * self._known["forget_pass_flops"]
            return {"num_train_epochs": budget} if passes is None else {"max_flops": passes}
        if unit == "training":
            return super().limits(budget)
        return {"max_flops": budget * (1.0 if unit == "flops" else 60 * self._known["flops_per_second"])}

    def spent(self, name: str, method: str | None) -> dict[str, Any] | None:
        return super().spent(name, method) if method else None

    def annotated(self, result: "Evaluation", model: Any) -> "Evaluation":
        """With the reasons for what is not measured, and whether the tokens are those of training."""
        from llm_unlearn.audit.decisions import skipped_figures
        from llm_unlearn.audit.row_checks import token_warnings

        skipped = dict(self.manifest["skipped"])
        if result.cost is None:
            skipped["cost"] = "what a given model took to make is not in it"
        if self.base_lacks:
            skipped.setdefault("mia.reference", self.base_lacks)
        if result.model == "retrained":
            skipped["oracle"] = "it is the retrained model itself"
        elif not self.has_oracle:
            skipped.setdefault("oracle", NO_ORACLE)
        reasons = skipped_figures(skipped, result, self.manifest)
        doubts = [each.doubt for each in self.checkpoints.values() if each.doubt]
        return replace(result, skipped=reasons, warnings=[*token_warnings(self.evaluator, model), *doubts])
