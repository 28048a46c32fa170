"""Evaluate checkpoints against a manifest; neither has to come from a run of ours."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.decisions import as_json, look_warnings, skipped_figures
from llm_unlearn.audit.named_models import in_run, short_names
from llm_unlearn.audit.out_folder import forget_result, key_of, made_folder, write_result
from llm_unlearn.audit.row_checks import check_prompts, token_warnings
from llm_unlearn.audit.subject import read_subject
from llm_unlearn.audit.user_files import in_manifest
from llm_unlearn.config.sections import EvaluateSection
from llm_unlearn.config.validate import validated
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.audit.loader import Checkpoint, Loader
    from llm_unlearn.evaluation.arithmetic import Arithmetic
    from llm_unlearn.metrics.results import Evaluation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How models are loaded and run; None takes the setting of the manifest's run, or else the default.

    Args:
        base: folder or hub id of the base of adapters, which also calibrates the reference attack.
        retrained: folder or hub id of the oracle.
        poisoned: folder or hub id of the model from before unlearning, which is evaluated too: what the tests do not
            find in it they exclude in no other.
        out: the folder to write to; it may hold files of the same audit of other models, and of no other audit.
        batch_size: by default 32.
        dtype: by default "float32".
        quantization: by default "none".
        attn_implementation: the kernel of attention, by default transformers' choice.
        device_map: "auto" spreads each model over all GPUs.
        bf16: run models under autocast to bfloat16; by default not.
        tf32: compute float32 products of a CUDA GPU in TF32; by default exactly.
        membership: the membership attacks to run; by default all of the manifest's run, or all there are.
        by_recipe: the manifest was made from a recipe that anyone may have, not taken from the run of the models: noise
            that the system drew is not theirs, and is not looked for.
    """

    base: str | None = None
    retrained: str | None = None
    poisoned: str | None = None
    out: str | None = None
    batch_size: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    attn_implementation: str | None = None
    device_map: str | None = None
    bf16: bool | None = None
    tf32: bool | None = None
    membership: list[str] | None = None
    by_recipe: bool = False


def audit(models: list[str], manifest: str, options: Options) -> "dict[str, Evaluation]":
    """Evaluate checkpoints against a manifest.

    Args:
        models: folders or hub ids, full models or adapters.
        manifest: path of the manifest, a user's own or the poison.json of a run.
        options: how the models are loaded and run.

    Returns:
        model → its evaluation, the poisoned one first; `skipped` gives the reason for each section that is None.

    Raises:
        InputError: the input is wrong; the message names the option, file, field or row.
    """
    from llm_unlearn.audit.loader import Loader, same_model
    from llm_unlearn.evaluation.summarize import membership_tests, summarize
    from llm_unlearn.metrics.evidence import Status, decide
    from llm_unlearn.metrics.results import Identity
    from llm_unlearn.reporting.decision_words import because

    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch-size {options.batch_size}: must be at least 1")
    sources = [in_run(model) for model in [*filter(None, [options.poisoned]), *models]]
    names, subject = short_names(sources), read_subject(Path(manifest), options.by_recipe)
    poisoned = next(iter(names)) if options.poisoned else None
    if options.membership is not None:
        chosen = validated(EvaluateSection, {"membership": options.membership}, "--membership").membership
        subject = replace(subject, evaluate=subject.evaluate.changed(membership=chosen))
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "batch_size", "device_map")}
    key = key_of(subject, settings) if options.out else ""
    out = made_folder(options.out, names, key) if options.out else None
    for note in subject.notes:
        logger.info(note)
    given = {name: getattr(options, name) for name in ("dtype", "quantization", "attn_implementation")}
    loader = Loader(subject, options.base, given, options.device_map)
    skipped = {**subject.missing, "cost": "what a checkpoint took to make is not in it"}
    checkpoints = {name: _found(loader, source, out, name) for name, source in names.items()}
    if out:
        for name in names:
            forget_result(out, name)
    oracle_path = options.retrained or subject.retrained
    oracle = loader.find(oracle_path) if oracle_path else None
    reference = _reference(loader, options, skipped)
    audited = [*checkpoints.values(), *filter(None, [oracle])]
    evaluator = _evaluator(loader, audited, manifest, options, reference, skipped)
    oracle_model, oracle_signals = None, None
    if oracle:
        logger.info("%s: evaluating, as the oracle", oracle.source)
        oracle_model = loader.load(oracle)
        oracle_signals = evaluator.signals(oracle_model, is_oracle=True)
    else:
        skipped.setdefault("oracle", "no --retrained model was given")
    results = {}
    for name, checkpoint in checkpoints.items():
        logger.info("%s: evaluating", checkpoint.source)
        is_oracle = same_model(checkpoint.source, oracle_path)
        signals = oracle_signals if is_oracle else None
        warnings = list(filter(None, [checkpoint.doubt, oracle.doubt if oracle and not is_oracle else None]))
        if name != poisoned and not is_oracle:
            warnings += look_warnings(subject, Path(manifest).parent, checkpoint.source)
        model = oracle_model if is_oracle else loader.load(checkpoint)
        if signals is None:
            signals = evaluator.signals(model, oracle_model)
        warnings = [*token_warnings(evaluator, model), *warnings]
        identity = Identity(
            model=name,
            kind="poisoned" if name == poisoned else "audited",
            method=None,
            budget=None,
            seed=subject.seed,
            recipe=subject.name,
            precision=evaluator.arithmetic.precision,
            planted=evaluator.planted,
        )
        result = summarize(signals, identity, None, None if is_oracle else oracle_signals)
        if oracle_signals is not None and not is_oracle:
            own = summarize(oracle_signals, identity, None, None)
            result = replace(result, retrained=own.figures)
            if (found := decide([own])).status == Status.REMAINS:
                warnings.append(f"the retrained model fails the same tests: {'; '.join(because(found))}")
        for warning in warnings:
            logger.warning("%s: %s", name, warning)
        reasons = {**skipped, "oracle": "it is the retrained model itself"} if is_oracle else dict(skipped)
        reasons = skipped_figures(reasons, result, subject.poison)
        control = evaluator.membership_control
        base = membership_tests(control["member"], control["nonmember"]) if control else None
        results[name] = replace(result, mia_control=base, skipped=reasons, warnings=warnings)
        if out:
            write_result(out, name, checkpoint.source, as_json(results)[name], signals, key)
    return results


def _found(loader: "Loader", source: str, out: Path | None, name: str) -> "Checkpoint":
    """A model to be audited; of one that cannot be read no earlier verdict stays."""
    try:
        return loader.find(source)
    except InputError:
        if out:
            forget_result(out, name)
        raise


def _reference(loader: "Loader", options: Options, skipped: dict[str, str]) -> "Checkpoint | None":
    """The model that calibrates the reference attack: --base, or the base of the run if it still exists."""
    if "mia" in skipped or "reference" not in loader.subject.evaluate.membership:
        return None
    if options.base:
        return loader.find(options.base)
    try:
        if loader.subject.base:
            return loader.find(loader.subject.base)
        skipped["mia.reference"] = "no --base model was given"
    except InputError as error:
        skipped["mia.reference"] = f"the run's base cannot be loaded, and no --base was given ({error})"
    return None


def _evaluator(
    loader: "Loader",
    audited: "list[Checkpoint]",
    manifest: str,
    options: Options,
    reference: "Checkpoint | None",
    skipped: dict[str, str],
) -> Any:
    """The evaluator of all checkpoints, which must share one tokenizer."""
    from llm_unlearn.audit.loader import added_tokens, check_same_tokens, writes_otherwise
    from llm_unlearn.evaluation.placebos import PlaceboSettings
    from llm_unlearn.evaluation.text_evaluator import TextEvaluator

    subject, first = loader.subject, audited[0]
    tokenizer = loader.tokenizer(first)
    if reference is not None and (added := added_tokens(tokenizer, loader.tokenizer(reference))):
        skipped["mia.reference"] = f"{reference.source} has no embedding for {', '.join(map(repr, added[:3]))}"
        reference = None
    for checkpoint in [*audited[1:], *filter(None, [reference])]:
        other = loader.tokenizer(checkpoint)
        check_same_tokens(tokenizer, other, first.source, checkpoint.source)
        if writes_otherwise(tokenizer, other, subject.sets["train"], subject.encoding):
            logger.warning(
                "model %s: its tokenizer writes the training rows otherwise than that of %s (BOS, EOS, chat template), "
                "by which both are measured; where they were trained so, figures that compare them mean little",
                checkpoint.source,
                first.source,
            )
    with in_manifest(manifest):
        check_prompts(subject, tokenizer)
    section = subject.evaluate
    return TextEvaluator(
        sets=subject.sets,
        manifest=subject.poison,
        batch_size=options.batch_size or section.batch_size,
        arithmetic=_arithmetic(loader, options),
        membership=section.membership,
        loss_rank_draws=section.loss_rank_draws,
        placebo=PlaceboSettings.of(section),
        template=subject.template,
        min_k_share=section.min_k_share,
        reference=partial(loader.load, reference) if reference else None,
        tokenizer=tokenizer,
        encoding=subject.encoding,
        verbalizers=subject.verbalizers,
        max_new_tokens=section.max_new_tokens,
        fluency=section.fluency,
    )


def _arithmetic(loader: "Loader", options: Options) -> "Arithmetic":
    from llm_unlearn.evaluation.arithmetic import Arithmetic

    section = loader.subject.evaluate
    bf16 = section.bf16 if options.bf16 is None else options.bf16
    return Arithmetic(bf16, section.tf32 if options.tf32 is None else options.tf32, loader.section.dtype)
