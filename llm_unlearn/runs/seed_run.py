"""One seed of a recipe: its folder, its phases, and what they share. language_run.py and vision_run.py say the rest."""

import contextlib
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import InputError
from llm_unlearn.files import file_stamps, read_json, write_json
from llm_unlearn.runs.stages import MARK_REMEDY, Stage, Stages

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.evaluation.arithmetic import Arithmetic
    from llm_unlearn.evaluation.benchmarks.measures import Benchmark
    from llm_unlearn.metrics.results import Evaluation
    from llm_unlearn.training.tracking import Trackers

SECRET = "secret.json"  # of a poison stage that is at work
SEEDS = {"gaussian": "noise_seed", "tokens": "string_seed"}  # of canaries: the field that fixes what is else secret
STEP = "step-{}"  # the folder of an early model, beside the weights of the model that came of it


@contextlib.contextmanager
def made_by_run(folder: Path) -> Iterator[None]:
    """Say of an error about a folder that a run made how to have it made again."""
    try:
        yield
    except InputError as error:
        if str(folder) not in str(error):  # about the base of an adapter, say
            raise
        raise InputError(
            f"{error}. It belongs to this run: delete {folder} and run the same command again to have it made again"
        ) from error


class SeedRun(ABC):
    """One seed of a recipe, in its own folder. Nothing is read or made before it is needed."""

    encoding_version: int | None = None  # of how rows become what a model is trained on

    def __init__(self, recipe: Recipe, seed: int, folder: Path, quiet: bool) -> None:
        self.recipe, self.seed, self.folder, self.quiet = recipe, seed, folder, quiet
        self.processes = Processes.current()
        self.trainers: dict[str, Any] | None = None  # of each method that was run; None: each is freed
        self.siblings: list[Path] = []  # folders of the same seed, from which a model that is the same may be taken

    def variants(self) -> list[tuple[str, str, float]]:
        """(name of the model, method, budget) of everything that this recipe unlearns."""
        budgets = self.recipe.unlearn.budgets
        return [(m if len(budgets) == 1 else f"{m}@{b:g}", m, b) for m in self.recipe.unlearn.methods for b in budgets]

    def unlearned_models(self) -> dict[str, str]:
        """Name and folder of the model of every method at the largest budget."""
        largest = max(self.recipe.unlearn.budgets)
        return {name: f"unlearned/{name}" for name, _, budget in self.variants() if budget == largest}

    @property
    def plain_models(self) -> list[str]:
        """The models that no method made, the oracle first."""
        return ["retrained", "base", "poisoned", *(["clean"] if self.recipe.has_clean_oracle else [])]

    @property
    def has_oracle(self) -> bool:
        """Whether there is a retrained model, with which the others are compared."""
        return "retrained" in self.plain_models

    # ---- what stages depend on

    @cached_property
    def corruption(self) -> list[Any]:
        """What the corrupted training set depends on; not the forget set, which is chosen in it, nor which of its
        canaries are hidden.
        """
        data = self.recipe.data
        poison = self.recipe.poison.model_dump(exclude={kind: {"audit_share"} for kind in SEEDS})
        if poison.get("tokens") is None:  # runs from before there were any keep their stages
            poison.pop("tokens", None)
        for section in filter(None, map(poison.get, SEEDS)):
            if section.get("exposures") == 1:  # likewise
                del section["exposures"]
        return [
            data.model_dump(),
            poison,
            self.secret,
            self.seed,
            file_stamps([data.source, *(data.files or []), *(data.test_files or [])]),
            *self.benchmark_rows,
        ]

    @property
    def benchmark_rows(self) -> list[Any]:
        """What the rows of a benchmark depend on; nothing without one. Chunks of a corpus depend on the tokenizer."""
        from llm_unlearn.data.benchmarks.benchmark_sets import parts_of

        if (section := self.recipe.benchmark) is None:
            return []
        folder = section.folder
        files = [] if folder is None else [str(part.local(folder)) for part in parts_of(section).all]
        return [section.model_dump(include={"name", "split", "folder"}), file_stamps(files), self.base]

    def rows_key(self, before: dict[str, Stage]) -> str:
        """What the rows that a method gets depend on."""
        return before["poison"].key

    @property
    def clean_training(self) -> list[Any]:
        """What clean steps depend on beside the stages before; nothing where the poisoned training was by the same."""
        return []

    def choice(self, before: dict[str, Stage]) -> str | None:
        """What is judged by rows that are kept for a verdict; None where none are."""
        return None

    @cached_property
    def secret(self) -> str | None:
        """What the noise and strings of the canaries are drawn from, unless the recipe fixes seeds: that of the run's
        own poison.json, or of the stage that was to write it and was killed, or of the same seed's at another point of
        a sweep, or else a new one.
        """
        from llm_unlearn.poisons.stored import sealed_manifest

        canaries = [(section, SEEDS[kind]) for kind, section in self.recipe.poison if section and kind in SEEDS]
        if all(getattr(section, seed) is not None for section, seed in canaries):
            return None
        begun = Stages(self.folder).work_dir("poison") / SECRET
        for path in (self.folder / "poison.json", begun, *(folder / "poison.json" for folder in self.siblings)):
            if not path.is_file():
                continue
            if path == begun:
                return str(read_json(path, MARK_REMEDY)["secret"])
            manifest = sealed_manifest(path)
            if kept := next(filter(None, ((manifest.get(kind) or {}).get("secret") for kind in SEEDS)), None):
                return str(kept)
        return secrets.token_hex(16)

    def trained(self, name: str, rows: Any, work: Callable[[Path], None]) -> Stage:
        """The stage that fine-tunes the base into the folder `name`; `rows`: what its rows depend on."""
        section = self.recipe.model
        train = self.recipe.train.model_dump()
        train.pop("keep_steps", None)  # it changes no model; that those kept are there is said by the outputs
        inputs = [
            rows,
            section.model_dump(),
            train,
            self.seed,
            self.base,
            self.encoding_version,
            file_stamps([section.path] if section.path else []),
            name,
        ]
        kept = [self.folder / name / STEP.format(step) for step in self.recipe.kept_steps if name == "poisoned"]
        return Stage(name, inputs, [self.folder / name / "cost.json", *kept], work, common=True)

    # ---- what a kind of data must say

    @property
    @abstractmethod
    def base(self) -> str:
        """Path or id of the base, or how it is made."""

    @property
    @abstractmethod
    def train_rows(self) -> "Dataset":
        """The corrupted training rows, as a trainer takes them."""

    @property
    def given_rows(self) -> "Dataset":
        """The same for whoever unlearns, hidden strings taken out of them."""
        return self.train_rows

    @property
    @abstractmethod
    def arithmetic(self) -> "Arithmetic":
        """The precision of the evaluation."""

    @property
    @abstractmethod
    def evaluator(self) -> Any: ...

    @property
    def benchmark(self) -> "Benchmark | None":
        """What a benchmark measures of every model; by default there is none."""
        return None

    @abstractmethod
    def load_base(self) -> Any:
        """The model before fine-tuning, on the best device, to be evaluated."""

    @abstractmethod
    def load(self, folder: Path, to_evaluate: bool, in_parts: bool) -> Any:
        """A trained model of this run on the best device; over several devices if it is to be evaluated and no more.

        `in_parts`: all processes call it, and under FSDP2 none of them gets the model whole.
        """

    @abstractmethod
    def save_model(self, model: Any, folder: Path, weights: dict[str, Any] | None) -> None:
        """Write a model, whole or not at all; `weights`: its state dict, where it is sharded."""

    @abstractmethod
    def corrupted(self, work_dir: Path) -> tuple[dict[str, "Dataset"], dict[str, Any]]:
        """Load, split and poison the data: sets and manifest; files that are to lie beside them go to work_dir."""

    @abstractmethod
    def fine_tune(self, name: str, rows: "Dataset", work_dir: Path, data_seed: int | None = None) -> None:
        """Train the base on rows by the recipe's settings and save it in the folder `name`.

        Args:
            name: the folder of the model, relative to that of the run.
            rows: the rows to train on.
            work_dir: where checkpoints are written meanwhile.
            data_seed: the seed of the order of the rows; by default the run's own.
        """

    @abstractmethod
    def unlearning(self) -> tuple[Any, dict[str, Any]]:
        """The poisoned model, its canaries' noise in place, and what a trainer must be told of the data."""

    @abstractmethod
    def clean_start(self) -> Any:
        """The model before fine-tuning, for methods that begin there; None where they make it from the poisoned one."""

    def early_model(self, step: int) -> Any:
        """The poisoned model as it was after a step of its training that `train.keep_steps` names."""
        return self.model(f"poisoned/{STEP.format(step)}", common=True)

    # ---- what the stages share

    @cached_property
    def sets(self) -> dict[str, "Dataset"]:
        """The datasets of this run."""
        from llm_unlearn.poisons.stored import read_sets

        return read_sets(self.folder / "data")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """poison.json, checked against the data."""
        from llm_unlearn.poisons.stored import read_manifest

        return read_manifest(self.folder / "poison.json", self.sets)

    def forget_and_retain(self) -> tuple["Dataset", "Dataset"]:
        """U and S_corr ∖ U: the rows as they were trained on, trigger in place and noise injected; but for the canaries
        of U that are hidden, which are as they were before. What comes after poisoned training gets its rows here.
        """
        from llm_unlearn.poisons.gaussian_embedding import hide_canaries

        rows, forget = self.given_rows, set(self.manifest["forget_ids"])
        if self.manifest["gaussian"]:
            rows = hide_canaries(rows, self.manifest["gaussian"])
        inside = [i for i, example_id in enumerate(rows["example_id"]) if example_id in forget]
        outside = sorted(set(range(len(rows))) - set(inside))
        return rows.select(inside), rows.select(outside)

    def clean_rows(self) -> "Dataset":
        """Training rows that are neither poisoned nor to be forgotten."""
        forget = set(self.manifest["forget_ids"])
        return self.train_rows.filter(
            lambda row: row["poison"] == "none" and row["example_id"] not in forget, desc="clean rows"
        )

    @property
    def measures_parts(self) -> bool:
        """Whether an evaluation can do with a model of which each process has its part: the gradient of one row's loss
        cannot, since there the processes' gradients are summed.
        """
        return "gradient_norm" not in self.recipe.evaluate.membership

    def model(self, where: str, common: bool = False) -> Any:
        """A trained model of this run, fresh from its folder, on the best device; `common`: all processes call it."""
        with made_by_run(self.folder / where):
            return self.load(self.folder / where, to_evaluate=False, in_parts=common)

    def evaluated(self, where: str) -> Any:
        """The same, to be evaluated and no more: it may be spread over several devices."""
        with made_by_run(self.folder / where):
            return self.load(self.folder / where, to_evaluate=True, in_parts=self.measures_parts)

    def trackers(self, name: str) -> "Trackers":
        """Who listens to the training of a model, as to that of the methods."""
        from llm_unlearn.training.tracking import Trackers

        run_name = f"{self.recipe.name}-{name}-seed-{self.seed}"
        return Trackers(list(self.recipe.unlearn.report_to), run_name, self.folder / "logs" / name)

    def cost(self, where: str) -> dict[str, Any]:
        """What the training of a model took: train_tokens, flops, seconds, and what else is known of it.

        Raises:
            InputError: its file is damaged.
        """
        path = self.folder / where / "cost.json"
        with made_by_run(path.parent):
            cost = read_json(path, "it was damaged")
            for name in ("train_tokens", "flops", "seconds"):
                if not isinstance(value := cost.get(name), int | float) or not math.isfinite(value):
                    raise InputError(f"{path}: has no number '{name}'")
        return cost

    @property
    def training_flops(self) -> float | None:
        """What the poisoned training took; None where that is not known."""
        return self.cost("poisoned")["flops"]

    def limits(self, budget: float) -> dict[str, float]:
        """What a budget means for a method's config: where it stops."""
        assert self.training_flops is not None
        return {"max_flops": budget * self.training_flops}

    def spent(self, name: str, method: str | None) -> dict[str, Any] | None:
        """`cost` of a model by its name; None where it is not known."""
        if name == "base":
            return {"train_tokens": 0, "flops": 0.0, "seconds": 0.0}
        return self.cost(f"unlearned/{name}" if method else name)

    def annotated(self, result: "Evaluation", model: Any) -> "Evaluation":
        """An evaluation with what else is to be said of it: by default nothing."""
        return result

    def save(self, model: Any, where: str, cost: dict) -> None:
        """Write a trained model into the folder `where`; called by every process, done by the main one."""
        self.write(model, self.folder / where)
        if self.processes.is_main:
            write_json(self.folder / where / "cost.json", cost)

    def write(self, model: Any, folder: Path) -> None:
        """Write a model into any folder; called by every process, done by the main one."""
        from llm_unlearn.distributed.sharding import is_sharded, whole_state_dict

        adapter = "default" if hasattr(model, "peft_config") else None
        weights = whole_state_dict(model, adapter, keep=self.processes.is_main) if is_sharded(model) else None
        if self.processes.is_main:
            self.save_model(model, folder, weights)

    @cached_property
    def retrained(self) -> Any:
        """The oracle, loaded once; None where there is none."""
        return self.evaluated("retrained") if self.has_oracle else None
