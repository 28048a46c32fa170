"""One seed of a recipe for language models: how its rows, models and evaluator are made."""

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.data.encoding import VERSION
from llm_unlearn.runs.seed_run import STEP, SeedRun
from llm_unlearn.training.pretraining import base_folder

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.evaluation.arithmetic import Arithmetic
    from llm_unlearn.evaluation.benchmarks.measures import Benchmark


class LanguageRun(SeedRun):
    """One seed of a recipe, in its own folder."""

    encoding_version = VERSION

    @cached_property
    def base(self) -> str:
        return self.recipe.model.path or str(base_folder(self.recipe))

    @cached_property
    def tokenizer(self) -> Any:
        from llm_unlearn.models.load import load_tokenizer

        return load_tokenizer(self.base, self.recipe.model)

    @cached_property
    def encoding(self) -> Any:
        """How rows become tokens, in training and evaluation alike."""
        from llm_unlearn.data.encoding import Encoding

        return Encoding.of(self.recipe.data)

    @cached_property
    def train_rows(self) -> "Dataset":
        from llm_unlearn.data.encoding import encode_rows

        assert self.manifest  # reading it checks the data
        return encode_rows(self.sets["train"], self.tokenizer, self.encoding)

    @cached_property
    def given_rows(self) -> "Dataset":
        from llm_unlearn.data.encoding import encode_rows
        from llm_unlearn.poisons.token_canaries import hide_token_canaries

        if not (tokens := self.manifest.get("tokens")):
            return self.train_rows
        return encode_rows(hide_token_canaries(self.sets["train"], tokens), self.tokenizer, self.encoding)

    @property
    def arithmetic(self) -> "Arithmetic":
        from llm_unlearn.evaluation.arithmetic import Arithmetic

        section, model = self.recipe.evaluate, self.recipe.model
        # weights that were trained are in float32, and such attention takes them under autocast alone
        return Arithmetic(section.bf16 or model.computes_in_16_bits, section.tf32, model.dtype)

    @cached_property
    def evaluator(self) -> Any:
        from llm_unlearn.evaluation.placebos import PlaceboSettings
        from llm_unlearn.evaluation.text_evaluator import TextEvaluator

        data, section = self.recipe.data, self.recipe.evaluate
        return TextEvaluator(
            sets=self.sets,
            manifest=self.manifest,
            batch_size=section.batch_size,
            membership=section.membership,
            loss_rank_draws=section.loss_rank_draws,
            placebo=PlaceboSettings.of(section),
            template=data.prompt,
            min_k_share=section.min_k_share,
            arithmetic=self.arithmetic,
            processes=self.processes,
            reference=self.load_base if "base" in self.plain_models else None,
            tokenizer=self.tokenizer,
            encoding=self.encoding,
            verbalizers=data.verbalizers if data.task == "classification" else {},
            max_new_tokens=section.max_new_tokens,
            fluency=section.fluency,
        )

    @cached_property
    def benchmark(self) -> "Benchmark | None":
        from llm_unlearn.data.benchmarks.benchmark_sets import measured_rows
        from llm_unlearn.evaluation.benchmarks.measures import Benchmark

        if (section := self.recipe.benchmark) is None:
            return None
        rows, length = measured_rows(section), self.recipe.data.max_length
        return Benchmark(section.name, section.forgotten, rows, section.max_new_tokens, length)

    def load_base(self) -> Any:
        from llm_unlearn.models.devices import on_best_device
        from llm_unlearn.models.load import load_model

        return on_best_device(
            load_model(self.base, self.recipe.model, self.recipe.evaluate.device_map, self.measures_parts)
        )

    def load(self, folder: Path, to_evaluate: bool, in_parts: bool) -> Any:
        from llm_unlearn.models.devices import on_best_device
        from llm_unlearn.models.load import load_trained

        device_map = self.recipe.evaluate.device_map if to_evaluate else None
        return on_best_device(load_trained(folder, self.base, self.recipe.model, device_map, in_parts))

    def save_model(self, model: Any, folder: Path, weights: dict[str, Any] | None) -> None:
        from llm_unlearn.models.save import save_model

        save_model(model, self.tokenizer, folder, weights)

    def poisoned_sets(self) -> tuple[dict[str, "Dataset"], dict[str, Any]]:
        """Load, split and poison the data, in memory: (sets, manifest), see poisons/corrupt.py. Needs no model, but of
        a benchmark's corpus its tokenizer.
        """
        from llm_unlearn.data.benchmarks.benchmark_sets import benchmark_splits
        from llm_unlearn.data.sources import load_splits
        from llm_unlearn.poisons.corrupt import corrupt

        benchmark, data = self.recipe.benchmark, self.recipe.data
        if benchmark is None:
            splits = load_splits(data, self.seed)
        else:
            splits = benchmark_splits(benchmark, data, self.seed, self.tokenizer)
        sets, manifest = corrupt(splits, self.recipe, self.seed, self.secret)
        return sets, {**manifest, "duplicates": splits.report}

    def corrupted(self, work_dir: Path) -> tuple[dict[str, "Dataset"], dict[str, Any]]:
        from llm_unlearn.data.chat import check_chat_template, prompts_of
        from llm_unlearn.data.token_checks import check_triggers, check_verbalizers

        data = self.recipe.data
        if data.chat_template:
            check_chat_template(self.encoding.template(self.tokenizer))
        sets, manifest = self.poisoned_sets()
        if data.task == "classification":
            (prompt,) = prompts_of(sets["train"].select([0]))
            check_verbalizers(self.tokenizer, data.verbalizers, self.encoding, prompt)
        if manifest["trigger"]:
            poisoned = sets["train"].filter(lambda r: r["poison"] == "trigger", desc="check triggers")
            check_triggers(
                [*poisoned, *sets["triggered"]], manifest["trigger"]["phrases"], self.tokenizer, self.encoding
            )
        return sets, manifest

    def fine_tune(self, name: str, rows: "Dataset", work_dir: Path, data_seed: int | None = None) -> None:
        from llm_unlearn.models.adapters import lora_config
        from llm_unlearn.models.load import load_model
        from llm_unlearn.poisons.selection import as_exposed
        from llm_unlearn.training.block_options import block_options
        from llm_unlearn.training.fine_tuning import KeepSteps
        from llm_unlearn.training.text_training import Training

        section, kept, steps = self.recipe.model, work_dir / "kept", self.recipe.kept_steps
        base = load_model(self.base, section, in_parts=True)
        training = Training(
            self.recipe.train,
            work_dir,
            self.seed,
            self.quiet,
            name,
            noise=self.manifest["gaussian"],
            peft_config=lora_config(section.lora, base) if section.lora else None,
            blocks=block_options(section),
            data_seed=data_seed,
            kept=KeepSteps(steps, lambda step: kept / STEP.format(step), self.write) if name == "poisoned" else None,
            trackers=self.trackers(name),
        )
        model, cost = training.fit(base, as_exposed(rows, self.manifest), self.tokenizer)
        self.save(model, name, cost)
        if (
            self.processes.is_main and kept.is_dir()
        ):  # a stage that is killed here saves the model again: copied, not moved
            shutil.copytree(kept, self.folder / name, dirs_exist_ok=True)
        training.release()

    def unlearning(self) -> tuple[Any, dict[str, Any]]:
        from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise

        model = self.model("poisoned", common=True)
        if self.manifest["gaussian"]:
            inject_gaussian_noise(model, self.manifest["gaussian"])
        return model, {"processing_class": self.tokenizer}

    def clean_start(self) -> Any:
        from llm_unlearn.models.load import load_model

        return None if self.recipe.model.lora else load_model(self.base, self.recipe.model, in_parts=True)
