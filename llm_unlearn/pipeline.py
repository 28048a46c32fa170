"""The main job: base → poison → train → retrain → unlearn → evaluate → report, for every seed of a recipe.

Each stage reads and writes files (see the run directory in the README), so each can be run alone, skipped when nothing
changed, and resumed after a kill.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError
from llm_unlearn.recipe import Recipe
from llm_unlearn.stages import Stages, fingerprint, write_json, write_text

if TYPE_CHECKING:
    from datasets import Dataset

STAGES = ("poison", "train", "unlearn", "evaluate", "report")


def run(recipe: Recipe, *, until: str = "report", say: Callable[[str], None] = print, quiet: bool = False) -> Path:
    """Run a recipe up to and including a stage; what is done is skipped.

    Args:
        until: one of STAGES. say: receives one line per stage. quiet: no progress bars.
    Returns:
        the run directory.
    Raises:
        InputError: bad recipe, data or paths; nothing is half-written.
    """
    from llm_unlearn.methods import check_methods

    check_methods(recipe)
    root = Path(recipe.output_dir)
    _claim(root, recipe)
    for seed in recipe.seeds:
        folder = root if len(recipe.seeds) == 1 else root / f"seed-{seed}"
        SeedRun(recipe, seed, folder, say, quiet).run(until)
    if until == "report" and len(recipe.seeds) > 1:
        from llm_unlearn.reporting.report import write_report
        from llm_unlearn.reporting.summary import write_summary

        write_summary(root)
        write_report(root)
    return root


def _claim(root: Path, recipe: Recipe) -> None:
    """Refuse the output directory of another recipe; write recipe.yaml into ours."""
    from llm_unlearn.strict import read_yaml

    path = root / "recipe.yaml"
    if path.is_file():
        name = (read_yaml(path) or {}).get("name")
        if name != recipe.name:
            raise InputError(f"{root}: holds a run of recipe '{name}', not of '{recipe.name}'; choose another output_dir")
    elif root.is_dir() and any(root.iterdir()):
        raise InputError(f"{root}: is not empty and holds no run of ours (no recipe.yaml); choose another output_dir")
    write_text(path, recipe.to_yaml())


class SeedRun:
    """One seed of a recipe, in its own folder."""

    def __init__(self, recipe: Recipe, seed: int, folder: Path, say: Callable[[str], None], quiet: bool) -> None:
        self.recipe, self.seed, self.folder, self.quiet = recipe, seed, folder, quiet
        prefix = f"seed {seed}: " if len(recipe.seeds) > 1 else ""
        self.stages = Stages(folder, lambda line: say(prefix + line))
        self.keys: dict[str, str] = {}

    def run(self, until: str) -> None:
        """Run every stage up to `until`."""
        from llm_unlearn.environment import describe_environment

        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "environment.json", describe_environment(self.seed))
        for stage in STAGES[: STAGES.index(until) + 1]:
            getattr(self, stage)()

    # ---- step 1

    def poison(self) -> None:
        """Load, split and corrupt the data; write `data/` and `poison.json`."""
        recipe = self.recipe
        inputs = [asdict(recipe.data), asdict(recipe.poison), recipe.unlearn.forget_fraction, self.seed,
                  _stamps([*(recipe.data.files or []), *(recipe.data.test_files or [])])]

        def work(work_dir: Path) -> None:
            from llm_unlearn.data.sources import load_splits
            from llm_unlearn.poisons.corrupt import corrupt

            splits = load_splits(recipe.data, self.seed)
            sets, manifest = corrupt(splits, recipe, self.seed)
            manifest["duplicates"] = splits.report
            self._check_triggers_survive(sets)
            partial = work_dir / "data"
            for name, rows in sets.items():
                rows.save_to_disk(partial / name)
            shutil.rmtree(self.folder / "data", ignore_errors=True)
            os.replace(partial, self.folder / "data")
            write_json(self.folder / "poison.json", manifest)

        outputs = [self.folder / "data", self.folder / "poison.json"]
        self.keys["poison"] = self.stages.run("poison", inputs, outputs, work)

    def _check_triggers_survive(self, sets: dict[str, "Dataset"]) -> None:
        """Raise where truncation would cut a trigger off: the attack would then not be what the manifest says."""
        from llm_unlearn.data.encoding import completion_tokens

        trigger = self.recipe.poison.trigger
        if trigger is None:
            return
        rows = sets["train"].filter(lambda r: r["poison"] == "trigger", desc="check triggers")
        for row in [*rows, *sets["triggered"]]:
            room = len(completion_tokens(self.tokenizer, row["completion"])) + 1
            kept = self.tokenizer.decode(self.encoding.prompt_ids(self.tokenizer, row["prompt"], room))
            if not any(phrase in kept for phrase in trigger.phrases):
                raise InputError(
                    f"example {row['example_id']}: truncation to {self.encoding.max_length} tokens cuts the trigger "
                    "off. Raise data.max_length, lower data.max_words, or set poison.trigger.position to end"
                )

    @cached_property
    def sets(self) -> dict[str, "Dataset"]:
        """The datasets of this run, checked against the manifest."""
        from datasets import load_from_disk

        from llm_unlearn.poisons.corrupt import SETS

        return {name: load_from_disk(str(self.folder / "data" / name)) for name in SETS}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        from llm_unlearn.poisons.corrupt import read_manifest

        return read_manifest(self.folder / "poison.json", self.sets)

    # ---- the base, its tokenizer, how rows become tokens

    @cached_property
    def base(self) -> str:
        """Path or id of the base; made and pre-trained where the recipe gives an architecture."""
        if self.recipe.model.path is not None:
            return self.recipe.model.path
        from llm_unlearn.pretraining import make_base

        return str(make_base(self.recipe, self.stages.say, self.quiet))

    @cached_property
    def tokenizer(self) -> Any:
        from llm_unlearn.modeling import load_tokenizer

        return load_tokenizer(self.base, self.recipe.model)

    @cached_property
    def encoding(self) -> Any:
        from llm_unlearn.data.encoding import Encoding

        data = self.recipe.data
        return Encoding(data.max_length, data.loss_on, data.chat_template)

    @cached_property
    def train_rows(self) -> "Dataset":
        """The corrupted training rows, tokenised."""
        from llm_unlearn.data.encoding import encode_rows

        return encode_rows(self.sets["train"], self.tokenizer, self.encoding)

    def forget_and_retain(self) -> tuple["Dataset", "Dataset"]:
        """U and S_corr ∖ U: the rows as they were trained on, trigger in place and noise injected."""
        forget = set(self.manifest["forget_ids"])
        rows = self.train_rows
        inside = [i for i, example_id in enumerate(rows["example_id"]) if example_id in forget]
        outside = [i for i, example_id in enumerate(rows["example_id"]) if example_id not in forget]
        return rows.select(inside), rows.select(outside)

    # ---- step 2

    def train(self) -> None:
        """Fine-tune the base on S_corr (`poisoned/`) and on S_corr ∖ U (`retrained/`), from the same start."""
        for name in ("poisoned", "retrained"):
            inputs = [self.keys["poison"], asdict(self.recipe.model), asdict(self.recipe.train), name, self.seed,
                      self._base_key()]
            self.keys[name] = self.stages.run(name, inputs, [self.folder / name / "cost.json"],
                                              lambda work_dir, name=name: self._fit(name, work_dir))

    def _fit(self, name: str, work_dir: Path) -> None:
        from llm_unlearn.modeling import load_model, lora_config
        from llm_unlearn.training import Training

        model, section = load_model(self.base, self.recipe.model), self.recipe.model
        rows = self.train_rows if name == "poisoned" else self.forget_and_retain()[1]
        training = Training(
            self.recipe.train, work_dir, self.seed, self.quiet, noise=self.manifest["gaussian"],
            peft_config=lora_config(section.lora) if section.lora else None,
            gradient_checkpointing=section.gradient_checkpointing,
        )
        model, cost = training.fit(model, rows, self.tokenizer)
        self._save(model, self.folder / name, cost)

    def _save(self, model: Any, folder: Path, cost: dict) -> None:
        from llm_unlearn.modeling import save_model

        save_model(model, self.tokenizer, folder)
        write_json(folder / "cost.json", cost)

    def _base_key(self) -> str:
        return fingerprint([self.base, asdict(self.recipe.pretrain) if self.recipe.pretrain else None])

    # ---- step 3

    def unlearn(self) -> None:
        """Run every method at every budget: `unlearned/<method>/`, or `<method>@<budget>` with several budgets."""
        for name, method, budget in self.variants():
            options = self.recipe.unlearn.methods[method] or {}
            common = {k: v for k, v in asdict(self.recipe.unlearn).items() if k not in ("methods", "budgets")}
            inputs = [self.keys["poisoned"], method, options, budget, common, self.seed]
            self.keys[name] = self.stages.run(
                f"unlearned/{name}", inputs, [self.folder / "unlearned" / name / "cost.json"],
                lambda work_dir, n=name, m=method, b=budget: self._unlearn(n, m, b, work_dir),
            )

    def variants(self) -> list[tuple[str, str, float]]:
        """(name of the model, method, budget) of everything that this recipe unlearns."""
        budgets = self.recipe.unlearn.budgets
        return [(m if len(budgets) == 1 else f"{m}@{b:g}", m, b) for m in self.recipe.unlearn.methods for b in budgets]

    def _unlearn(self, name: str, method: str, budget: float, work_dir: Path) -> None:
        import time

        from llm_unlearn.checkpoints import last_checkpoint
        from llm_unlearn.methods import method_config
        from llm_unlearn.modeling import load_trained
        from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
        from llm_unlearn.trainers import METHODS

        model = load_trained(self.folder / "poisoned", self.base, self.recipe.model)
        if self.manifest["gaussian"]:
            inject_gaussian_noise(model, self.manifest["gaussian"])
        forget, retain = self.forget_and_retain()
        flops = budget * self._cost("poisoned")["flops"]
        config = method_config(self.recipe, method, self.seed, str(work_dir), max_flops=flops, quiet=self.quiet)
        callback = self.evaluator.quick_figures if self.recipe.unlearn.eval_steps else None
        trainer = METHODS[method][1](model=model, args=config, forget_dataset=forget, retain_dataset=retain,
                                     processing_class=self.tokenizer, evaluate_callback=callback)
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=last_checkpoint(work_dir))
        trainer.check_weights()
        cost = {**trainer.cost, "seconds": time.perf_counter() - start}
        write_json(self.folder / "unlearned" / f"{name}.log.json", trainer.state.log_history)
        self._save(trainer.accelerator.unwrap_model(trainer.model), self.folder / "unlearned" / name, cost)

    def _cost(self, name: str) -> dict[str, float]:
        return json.loads((self.folder / name / "cost.json").read_text())

    # ---- step 4

    @cached_property
    def evaluator(self) -> Any:
        from llm_unlearn.evaluation.signals import Evaluator

        data, section = self.recipe.data, self.recipe.evaluate
        verbalizers = data.verbalizers if data.task == "classification" else {}
        return Evaluator(self.tokenizer, self.encoding, self.sets, self.manifest, verbalizers, section.batch_size,
                         section.max_new_tokens)

    def evaluate(self) -> None:
        """Write evaluation/<model>.json and .parquet for base, poisoned, retrained and every unlearned model."""
        models = [("retrained", None, None), ("base", None, None), ("poisoned", None, None), *self.variants()]
        for name, method, budget in models:
            outputs = [self.folder / "evaluation" / f"{name}{suffix}" for suffix in (".json", ".parquet")]
            inputs = [self.keys["retrained"], self.keys.get(name), name, asdict(self.recipe.evaluate)]
            self.keys[f"evaluation/{name}"] = self.stages.run(
                f"evaluation/{name}", inputs, outputs,
                lambda work_dir, n=name, m=method, b=budget: self._evaluate(n, m, b),
            )

    @cached_property
    def _retrained(self) -> Any:
        from llm_unlearn.modeling import load_trained

        return load_trained(self.folder / "retrained", self.base, self.recipe.model)

    def _evaluate(self, name: str, method: str | None, budget: float | None) -> None:
        import pandas as pd

        from llm_unlearn.evaluation.summary import summarize
        from llm_unlearn.modeling import load_model, load_trained

        is_oracle = name == "retrained"
        if name == "base":
            model, where = load_model(self.base, self.recipe.model), None
        elif is_oracle:
            model, where = self._retrained, "retrained"
        else:
            where = f"unlearned/{name}" if method else name
            model = load_trained(self.folder / where, self.base, self.recipe.model)
        signals = self.evaluator.signals(model, None if is_oracle else self._retrained)
        folder = self.folder / "evaluation"
        folder.mkdir(exist_ok=True)
        partial = folder / f"{name}.parquet.partial"
        signals.to_parquet(partial)
        os.replace(partial, folder / f"{name}.parquet")
        oracle = None if is_oracle else pd.read_parquet(folder / "retrained.parquet")
        cost = self._cost(where) if where else {"train_tokens": 0, "flops": 0.0, "seconds": 0.0}
        cost["share_of_training"] = cost["flops"] / self._cost("poisoned")["flops"]
        identity = {"model": name, "kind": "unlearned" if method else name, "method": method, "budget": budget,
                    "seed": self.seed, "recipe": self.recipe.name}
        write_json(folder / f"{name}.json", summarize(signals, identity, cost, oracle))

    def report(self) -> None:
        """Write report.md, report.html and plots/."""
        from llm_unlearn.reporting.report import write_report

        self.stages.say("report: writing")
        write_report(self.folder)


def _stamps(paths: list[str]) -> list[Any]:
    """Size and modification time of local files, so that a changed file is seen."""
    return [[p, os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in paths if os.path.exists(p)]

