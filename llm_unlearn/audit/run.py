"""Evaluate checkpoints against a manifest, and say in words what was found."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_unlearn.audit.manifest import read_subject
from llm_unlearn.errors import InputError
from llm_unlearn.sections import EvaluateSection, ModelSection
from llm_unlearn.stages import write_json

ALPHA = 0.001  # level of a finding, as in the report


@dataclass(frozen=True)
class Options:
    """How models are loaded and run. `base`: what an adapter sits on (null: what it names), and what calibrates the
    reference attack; `retrained`: the oracle."""

    base: str | None = None
    retrained: str | None = None
    out: str | None = None
    batch_size: int = 32
    max_new_tokens: int = 32
    dtype: str = "float32"
    quantization: str = "none"

    def section(self, path: str) -> ModelSection:
        return ModelSection(path=path, dtype=self.dtype, quantization=self.quantization)


def audit(models: list[str], manifest: str, options: Options, say: Callable[[str], None] = print) -> dict[str, dict]:
    """Evaluate checkpoints against a manifest.

    Args:
        models: folders or hub ids, full models or adapters. say: called with progress lines.
    Returns:
        model → its evaluation, schema version 1, with "skipped": section → why it is null.
    Raises:
        InputError: naming the file, field or row.
    """
    from llm_unlearn.evaluation.signals import Evaluator
    from llm_unlearn.evaluation.summary import summarize
    from llm_unlearn.modeling import load_checkpoint, load_tokenizer

    names = _names(models)
    subject = read_subject(Path(manifest))
    tokenizer = load_tokenizer(models[0], options.section(models[0]))
    reference = partial(load_checkpoint, options.base, options.section(options.base)) if options.base else None
    evaluator = Evaluator(tokenizer, subject.encoding, subject.sets, subject.poison, subject.verbalizers,
                          options.batch_size, options.max_new_tokens, EvaluateSection().membership, reference)
    oracle = oracle_signals = None
    if options.retrained:
        say(f"{options.retrained}: evaluating, as the oracle")
        oracle = load_checkpoint(options.retrained, options.section(options.retrained), options.base)
        oracle_signals = evaluator.signals(oracle)
    skipped = {**subject.missing, **({} if oracle else {"oracle": "no --retrained model was given"})}
    results = {}
    for name, where in names.items():
        say(f"{where}: evaluating")
        signals = evaluator.signals(load_checkpoint(where, options.section(where), options.base), oracle)
        identity = {"model": name, "kind": "audited", "method": None, "budget": None, "seed": 0, "recipe": subject.name}
        results[name] = summarize(signals, identity, None, oracle_signals) | {"skipped": skipped}
        if options.out:
            _write(Path(options.out), name, results[name], signals)
    return results


def _names(models: list[str]) -> dict[str, str]:
    """A short name per model: its last part, or as much of the path as tells them apart."""
    found: dict[str, str] = {}
    for where in models:
        if where in found.values():
            raise InputError(f"--model {where}: given twice")
        parts = Path(where).parts
        longer = ("_".join(parts[-k:]).strip("/_") for k in range(1, len(parts) + 1))
        name = next((n for n in longer if n not in found), where)
        found[name] = where
    return found


def _write(folder: Path, name: str, result: dict, signals: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial_path = folder / f".{name}.parquet.partial"
    signals.to_parquet(partial_path)
    os.replace(partial_path, folder / f"{name}.parquet")
    write_json(folder / f"{name}.json", result)


def as_text(results: dict[str, dict]) -> str:
    """What the audit found, one line per test, for reading on a terminal."""
    lines = []
    for name, result in results.items():
        lines += [name, *(f"  {line}" for line in _lines(result))]
    return "\n".join(lines)


def _lines(result: dict) -> list[str]:
    lines = []
    if gus := result["gus"]:
        says = "the canaries' noise is still in the model" if gus["p_value"] < ALPHA else \
            "their spread is not N(0, 1): a trace" if gus["chi2_p_value"] < ALPHA else "no trace found"
        lines.append(f"Gaussian test  GUS {gus['mean']:.2f} (n = {gus['n']}, p = {gus['p_value']:.2g}): {says}")
        control = gus["control"]
        if min(control["p_value"], control["chi2_p_value"]) < ALPHA:
            lines.append("  WARNING: fresh noise does not look like N(0, 1) on this model; the score is not calibrated")
    if attack := result["attack"]:
        low, high = attack["ci95"]["lift"]
        lines.append(f"trigger        answered as the attacker wants: {attack['success_rate']:.2f} with it, "
                     f"{attack['clean_rate']:.2f} without; lift {attack['lift']:.2f} [{low:.2f}, {high:.2f}]")
    for attack_name, mia in (result["mia"] or {}).items():
        says = "poisoned rows stand out" if mia["p_value"] < ALPHA else "not told apart"
        lines.append(f"membership     {attack_name}: AUC {mia['auc']:.2f} (p = {mia['p_value']:.2g}): {says}")
    if utility := result["utility"]:
        lines.append(f"utility        accuracy {100 * utility['accuracy']:.1f} %, perplexity "
                     f"{utility['perplexity']:.2f}")
    if oracle := result["oracle"]:
        lines.append(f"retrained      agrees on {100 * oracle['agreement']:.1f} % of the answers, KL "
                     f"{oracle['kl']:.3f}")
    lines += [f"not measured   {section}: {why}" for section, why in result["skipped"].items()]
    return [*lines, "A test that finds nothing does not show that nothing is left."]


def as_json(results: dict[str, dict]) -> str:
    return json.dumps(results, indent=2)
