"""One seed of a recipe: the stages it consists of, and the work of each; what depends on the kind of data is said in
language_run.py and vision_run.py."""

import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.files import file_stamps, replacing_file, write_json
from llm_unlearn.runs.analysis_stages import analysis_stages
from llm_unlearn.runs.stages import Stage
from llm_unlearn.runs.stress_stages import stress_stages

if TYPE_CHECKING:
    from datasets import Dataset

CONTACT_SHEET = "contact_sheet.npz"  # poisoned images beside their clean ones


class SeedRun(ABC):
    """One seed of a recipe, in its own folder. Nothing is read or made before it is needed."""

    def __init__(self, recipe: Recipe, seed: int, folder: Path, quiet: bool) -> None:
        self.recipe, self.seed, self.folder, self.quiet = recipe, seed, folder, quiet
        self.processes = Processes.current()
        self.siblings: list[Path] = []  # folders of the same seed, from which a model that is the same may be taken

    def stages(self, until: str = "report") -> list[Stage]:
        """Every stage up to a phase, in order; each depends on the hash of those that it builds on."""
        phases = {
            "poison": self._poison_stages,
            "train": self._train_stages,
            "unlearn": self._unlearn_stages,
            "evaluate": self._evaluate_stages,
            "analyze": partial(analysis_stages, self),
            "stress": partial(stress_stages, self),
        }
        stages: dict[str, Stage] = {}
        for phase, make in phases.items():
            stages |= {stage.name: stage for stage in make(stages)}
            if phase == until:
                break
        return list(stages.values())

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

    # ---- the stages

    def _poison_stages(self, before: dict[str, Stage]) -> list[Stage]:
        section = self.recipe.unlearn
        forget = [section.forget_fraction, section.false_positives, section.forget_ids]
        if isinstance(section.forget_ids, str):
            forget.append(file_stamps([section.forget_ids]))
        inputs = [*self.corruption, forget]
        return [Stage("poison", inputs, [self.folder / "data", self.folder / "poison.json"], self._poison)]

    @cached_property
    def corruption(self) -> list[Any]:
        """What the corrupted training set depends on; not the forget set, which is chosen in it."""
        data = self.recipe.data
        return [
            data.model_dump(),
            self.recipe.poison.model_dump(),
            self.seed,
            file_stamps([data.source, *(data.files or []), *(data.test_files or [])]),
        ]

    def trained(self, name: str, rows: Any, work: Callable[[Path], None]) -> Stage:
        """The stage that fine-tunes the base into the folder `name`; `rows`: what its rows depend on."""
        section = self.recipe.model
        inputs = [
            rows,
            section.model_dump(),
            self.recipe.train.model_dump(),
            self.seed,
            self.base,
            file_stamps([section.path] if section.path else []),
            name,
        ]
        return Stage(name, inputs, [self.folder / name / "cost.json"], work, common=True)

    def _train_stages(self, before: dict[str, Stage]) -> list[Stage]:
        rows = {"poisoned": self.corruption, "retrained": before["poison"].key}
        if self.recipe.has_clean_oracle:
            rows["clean"] = self.corruption
        return [self.trained(name, inputs, partial(self._train, name)) for name, inputs in rows.items()]

    def _unlearn_stages(self, before: dict[str, Stage]) -> list[Stage]:
        from llm_unlearn.runs.method_configs import settings

        apart = ("methods", "budgets", "report_to")  # who listens changes no model
        common = {k: v for k, v in self.recipe.unlearn.model_dump().items() if k not in apart}
        return [
            Stage(
                f"unlearned/{name}",
                [
                    before["poisoned"].key,
                    before["poison"].key,
                    method,
                    self.recipe.unlearn.methods[method] or {},
                    settings(self.recipe, method),
                    budget,
                    common,
                    self.seed,
                ],
                [self.folder / "unlearned" / name / "cost.json"],
                partial(self._unlearn, name, method, budget),
                common=True,
            )
            for name, method, budget in self.variants()
        ]

    def _evaluate_stages(self, before: dict[str, Stage]) -> list[Stage]:
        models = [*((name, None, None) for name in self.plain_models), *self.variants()]
        stages = []
        for name, method, budget in models:
            made_by = before.get(f"unlearned/{name}" if method else name)
            inputs = [
                before["retrained"].key,
                before["poisoned"].key,
                made_by.key if made_by else None,
                name,
                self.recipe.evaluate.model_dump(),
            ]
            outputs = [self.folder / "evaluation" / f"{name}{suffix}" for suffix in (".json", ".parquet")]
            stages.append(
                Stage(f"evaluation/{name}", inputs, outputs, partial(self._evaluate, name, method, budget), common=True)
            )
        return stages

    # ---- what a kind of data must say

    base: str  # path or id of the base, or how it is made

    @property
    @abstractmethod
    def train_rows(self) -> "Dataset":
        """The corrupted training rows, as a trainer takes them."""

    @property
    @abstractmethod
    def evaluator(self) -> Any: ...

    @abstractmethod
    def load_base(self) -> Any:
        """The model before fine-tuning, on the best device, to be evaluated."""

    @abstractmethod
    def model(self, where: str) -> Any:
        """A trained model of this run, fresh from its folder, on the best device."""

    def evaluated(self, where: str) -> Any:
        """The same, to be evaluated and no more: it may be spread over several devices."""
        return self.model(where)

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
            data_seed: of the order of the rows; the run's own seed by default.
        """

    @abstractmethod
    def unlearning(self) -> tuple[Any, dict[str, Any]]:
        """The poisoned model, its canaries' noise in place, and what a trainer must be told of the data."""

    @abstractmethod
    def clean_start(self) -> Any:
        """The model before fine-tuning, for methods that begin there; None where they make it from the poisoned one."""

    # ---- what the stages share

    @cached_property
    def sets(self) -> dict[str, "Dataset"]:
        """The datasets of this run."""
        from llm_unlearn.poisons.corrupt import read_sets

        return read_sets(self.folder / "data")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """poison.json, checked against the data."""
        from llm_unlearn.poisons.corrupt import read_manifest

        return read_manifest(self.folder / "poison.json", self.sets)

    def forget_and_retain(self) -> tuple["Dataset", "Dataset"]:
        """U and S_corr ∖ U: the rows as they were trained on, trigger in place and noise injected."""
        forget = set(self.manifest["forget_ids"])
        inside = [i for i, example_id in enumerate(self.train_rows["example_id"]) if example_id in forget]
        outside = sorted(set(range(len(self.train_rows))) - set(inside))
        return self.train_rows.select(inside), self.train_rows.select(outside)

    def clean_rows(self) -> "Dataset":
        """Training rows that are neither poisoned nor to be forgotten."""
        forget = set(self.manifest["forget_ids"])
        return self.train_rows.filter(
            lambda row: row["poison"] == "none" and row["example_id"] not in forget, desc="clean rows"
        )

    def _cost(self, where: str) -> dict[str, float]:
        return json.loads((self.folder / where / "cost.json").read_text())

    def save(self, model: Any, where: str, cost: dict) -> None:
        """Write a trained model into the folder `where`; called by every process, done by the main one."""
        from llm_unlearn.distributed.sharding import is_sharded, whole_state_dict

        adapter = "default" if hasattr(model, "peft_config") else None
        weights = whole_state_dict(model, adapter, keep=self.processes.is_main) if is_sharded(model) else None
        if self.processes.is_main:
            self.save_model(model, self.folder / where, weights)
            write_json(self.folder / where / "cost.json", cost)

    # ---- the work

    def _poison(self, work_dir: Path) -> None:
        from llm_unlearn.poisons.corrupt import write_manifest

        sets, manifest = self.corrupted(work_dir)
        for name, rows in sets.items():
            rows.save_to_disk(work_dir / "data" / name)
        write_manifest(work_dir / "poison.json", manifest)
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        for name in ("data", "poison.json", CONTACT_SHEET):  # renamed when all is written
            if (work_dir / name).exists():
                os.replace(work_dir / name, self.folder / name)

    def _train(self, name: str, work_dir: Path) -> None:
        """Fine-tune the base on S_corr (`poisoned/`), on S_corr ∖ U (`retrained/`) or on the clean rows alone
        (`clean/`), from the same start."""
        if name == "poisoned":
            rows = self.train_rows
        elif name == "retrained":
            rows = self.forget_and_retain()[1]
        else:
            rows = self.train_rows.filter(lambda row: row["poison"] == "none", desc="clean rows")
        self.fine_tune(name, rows, work_dir)

    def _unlearn(self, name: str, method: str, budget: float, work_dir: Path) -> None:
        from llm_unlearn.distributed.sharding import release
        from llm_unlearn.runs.method_configs import method_config
        from llm_unlearn.trainers import METHODS
        from llm_unlearn.training.fine_tuning import train_resumably
        from llm_unlearn.training.progress import show_progress
        from llm_unlearn.training.tracking import tracked

        model, arguments = self.unlearning()
        forget, retain = self.forget_and_retain()
        config = method_config(
            self.recipe,
            method,
            self.seed,
            str(work_dir),
            max_flops=budget * self._cost("poisoned")["flops"],
            quiet=self.quiet,
            cache_dir=str(self.folder / ".reference_log_probs"),
        )
        callback = self.evaluator.quick_figures if self.recipe.unlearn.eval_steps else None
        cls = METHODS[method][1]
        if cls.starts_clean and (start := self.clean_start()) is not None:
            arguments["start_model"] = start
        began = time.perf_counter()
        trainer = cls(
            model=model,
            args=config,
            forget_dataset=forget,
            retain_dataset=retain,
            evaluate_callback=callback,
            **arguments,
        )
        del model  # rewind trains another one
        show_progress(trainer, name, self.quiet)
        with tracked(trainer, self.folder / "logs" / name):
            train_resumably(trainer, work_dir)
        cost = {**trainer.cost, "seconds": time.perf_counter() - began}
        self.save(trainer.accelerator.unwrap_model(trainer.model), f"unlearned/{name}", cost)
        if self.processes.is_main:
            write_json(self.folder / "unlearned" / name / "log.json", trainer.state.log_history)
        release(trainer)

    @cached_property
    def _retrained(self) -> Any:
        return self.evaluated("retrained")

    def _evaluate(self, name: str, method: str | None, budget: float | None, work_dir: Path) -> None:
        import pandas as pd

        from llm_unlearn.evaluation.summarize import summarize

        where, is_oracle = f"unlearned/{name}" if method else name, name == "retrained"
        if name == "base":
            model = self.load_base()
            cost = {"train_tokens": 0, "flops": 0.0, "seconds": 0.0}
        else:
            model, cost = self._retrained if is_oracle else self.evaluated(where), self._cost(where)
        signals = self.evaluator.signals(model, None if is_oracle else self._retrained)
        folder = self.folder / "evaluation"
        oracle = None if is_oracle else pd.read_parquet(folder / "retrained.parquet")
        cost["share_of_training"] = cost["flops"] / self._cost("poisoned")["flops"]
        identity = {
            "model": name,
            "kind": "unlearned" if method else name,
            "method": method,
            "budget": budget,
            "seed": self.seed,
            "recipe": self.recipe.name,
        }
        summary = summarize(signals, identity, cost, oracle)  # before anything is written
        if not self.processes.is_main:
            return
        with replacing_file(folder / f"{name}.parquet") as partial:
            signals.to_parquet(partial)
        write_json(folder / f"{name}.json", summary)
