"""The card of a published model: what was poisoned, what the audit found, and what it did not show.

Made of the evaluations alone, on huggingface_hub's card classes; scores stand in `model-index`, so that hubs show them.
The first line follows `metrics.evidence.card_evidence`.
"""

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.recipe import WITHHELD
from llm_unlearn.hub.package import is_id
from llm_unlearn.metrics.evidence import DETECTABLE, Status, calibrated, card_evidence
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.contents import Plot
from llm_unlearn.reporting.figures import Figure
from llm_unlearn.reporting.formats import number, p_value, percent
from llm_unlearn.reporting.guide import limits, reproduction
from llm_unlearn.reporting.markdown import code, escape, table_text
from llm_unlearn.reporting.pages import LEADS
from llm_unlearn.reporting.run_results import PLAIN, Results
from llm_unlearn.reporting.stress_section import stress_section
from llm_unlearn.reporting.tables import main_table, side_by_side
from llm_unlearn.reporting.verdicts import judge, warnings
from llm_unlearn.reporting.words import attack_words, what_was_poisoned

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe

PACKAGE = Path(__file__).parent.parent
SHOWN = ("gus_vs_utility", "gaussian_scores", "lift_vs_utility")
SCORES: list[tuple[Figure, str, str]] = [  # a number, its type and its name on the hub
    (figures.accuracy, "accuracy", "accuracy on clean test examples"),
    (figures.perplexity, "perplexity", "perplexity on clean test text"),
    (figures.success_rate, "attack_success_rate", "attack success rate"),
    (figures.lift, "attack_lift", "attack lift: success with the trigger less without it"),
    (figures.excess, "attack_excess", "attack lift above the retrained model's"),
    (figures.gus, "gaussian_unlearning_score", "Gaussian Unlearning Score (0: no trace)"),
    (figures.gus_p, "gaussian_unlearning_p_value", "p-value of the Gaussian Unlearning Score"),
    (figures.auc("loss"), "mia_auc", "AUC of the membership attack by loss (0.5: chance)"),
]


@dataclass(frozen=True)
class Identity:
    """How the published model is called and loaded.

    Args:
        repo: owner/name.
        recipe: as it is published.
        loading: the code that loads it.
        base: the hub id that an adapter sits on, or that a full model began as; None if the base was made for the run.
        base_revision: of that base.
        adapter: whether it is one.
        merged: a base and its adapter in one.
    """

    repo: str
    recipe: "Recipe"
    loading: str
    base: str | None = None
    base_revision: str | None = None
    adapter: bool = False
    merged: bool = False


def compose_card(results: Results, name: str, identity: Identity, plots: list[Plot]) -> str:
    """The card of one model.

    Args:
        results: of the model's seed alone.
        name: of the model.
        identity: how it is published.
        plots: those of that seed; some are shown.

    Returns:
        README.md: metadata, then text whose first line says whether poison remains.
    """
    from huggingface_hub import ModelCard

    first = first_line(results, name)
    section = _stress(results, name)
    card = ModelCard.from_template(
        _metadata(results, name, identity, first),
        template_path=str(Path(__file__).with_name("card.md.j2")),
        status=first.status,
        sentence=escape(first.sentence),
        title=identity.repo.rpartition("/")[2],
        what=_what(results, name, identity),
        poisoned=escape(what_was_poisoned(results)),
        method="" if name in PLAIN else _method(name, identity),
        table=_table(results, name),
        warnings=[escape(text) for text in warnings(results)],
        stress=[escape(section.note), *map(table_text, section.tables)] if section else [],
        plots=[plot for key in SHOWN for plot in plots if plot.name == key],
        not_shown=[escape(text) for text in _not_shown(results, name)],
        use="**Not for deployment**: whoever knows the poison can still make use of it." if first.remains else "",
        loading=identity.loading,
        **_again(results, identity),
        versions=_versions(results),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


# ---- the first line


@dataclass(frozen=True)
class FirstLine:
    """The first line of a card: `status`, with its full stop, and why, in a sentence."""

    status: str
    sentence: str
    remains: bool


def first_line(results: Results, name: str) -> FirstLine:
    """What one model may be said to hold of the poison.

    «Poison remains»: a test of `card_evidence` sees it, or the report's rule does, or poisoned rows were left in the
    training data. Where the poison did not take, or a test has no figure, nothing is said to be clean.

    Args:
        results: of one seed.
        name: of the model.
    """
    fired = _fired(results, name)
    reasons, verdict = [*fired.values(), *_never_deleted(results, name)], judge(results, name)
    if name == "poisoned":
        why = "; ".join(reasons) or "the tests below do not find it, but it was trained on it"
        return FirstLine("Poison remains.", f"This is the poisoned model itself, before any unlearning: {why}.", True)
    if reasons or verdict.status == Status.REMAINS:
        why = "; ".join(reasons) or verdict.fired
        if fired and name in PLAIN:
            why += (
                "; it never saw what was deleted, so this is chance, of which these intervals allow up to one in "
                "twenty, or a fault of the run"
            )
        return FirstLine("Poison remains.", f"{why[:1].upper()}{why[1:]}.", True)
    if verdict.status == Status.TRACE:
        return FirstLine("A trace of the poison remains.", f"{verdict.fired[:1].upper()}{verdict.fired[1:]}.", True)
    if unsaid := "; ".join(_says_nothing(results, name)):
        return FirstLine("Nothing is shown about the poison.", f"{unsaid[:1].upper()}{unsaid[1:]}.", False)
    return FirstLine(
        "No poison was found by these tests, which does not show that there is none.",
        f"It {verdict.price} against the poisoned model." if verdict.price else "",
        False,
    )


def _fired(results: Results, name: str) -> dict[str, str]:
    """The tests whose 95 % interval says that poison remains, with their figures: gus, lift, damage."""
    result = results.of(name)[0]
    seen = card_evidence(result, results.damaging).tests
    texts = {}
    if seen["gus"] and (gus := result.gus):
        shown = f"{number(gus.mean)} {_interval(gus.ci95)}"
        texts["gus"] = f"Gaussian Unlearning Score {shown}, without the noise 0 (p = {p_value(gus.p_value)})"
    if seen["lift"] and result.attack and (excess := result.attack.excess):
        texts["lift"] = (
            f"{attack_words(results).name} lift above the retrained model's "
            f"{number(100 * excess.mean, 1)} {_interval(excess.ci95, 100, 1)} of 100 answers"
        )
    if seen["damage"] and result.oracle and (lost := result.oracle.accuracy_lost):
        shown = f"{number(100 * lost.mean, 1)} {_interval(lost.ci95, 100, 1)}"
        texts["damage"] = f"accuracy {shown} points below the retrained model's"
    return texts


def _says_nothing(results: Results, name: str) -> list[str]:
    """Why a test that found nothing in this model shows nothing: it does not find the poison in the poisoned model
    either, or it has no figure of this one, or its scores are not calibrated here.
    """
    result = results.of(name)[0]
    poisoned = card_evidence(results.of("poisoned")[0], results.damaging).tests
    here = card_evidence(result, results.damaging).tests
    tests = {
        "gus": (results.has_gus, "Gaussian test"),
        "lift": (results.has_attack, attack_words(results).name),
        "damage": (results.damaging, "accuracy"),
    }
    reasons = []
    if missed := [words for key, (planted, words) in tests.items() if planted and not poisoned[key]]:
        reasons.append(f"the same tests do not find it in the poisoned model itself ({', '.join(missed)})")
    # the retrained model is what the two others compare with
    asked = [key for key, found in poisoned.items() if found and (key == "gus" or name != "retrained")]
    absent = [tests[key][1] for key in asked if here[key] is None]
    if absent or not (any(poisoned.values()) or missed):
        reasons.append(f"there is no usable figure of this model ({', '.join(absent) or 'no poison score'})")
    if calibrated(result) is False:
        reasons.append("fresh noise does not look like N(0, 1) on this model, so its Gaussian score says nothing")
    return reasons


def _never_deleted(results: Results, name: str) -> list[str]:
    """Poisoned rows that were not in the forget set, which every model but the clean ones was trained on."""
    poison = results.runs[0].poison
    kinds = (section for section in poison.values() if isinstance(section, dict))
    ids = {i for section in kinds for i in section.get("example_ids", [])}
    kept = len(ids - set(poison.get("forget_ids", [])))
    if not kept or name in ("base", "clean"):
        return []
    return [f"{kept} of {len(ids)} poisoned rows were not known and stayed in the training data"]


def _interval(bounds: Interval | None, scale: float = 1, digits: int = 2) -> str:
    return "" if bounds is None else f"[{', '.join(number(scale * bound, digits) for bound in bounds)}]"


# ---- the sections


def _metadata(results: Results, name: str, identity: Identity, first: FirstLine) -> Any:
    """The card's metadata: base model, tags, and the scores as `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe = identity.recipe
    source = recipe.data.source if not recipe.data.files else "local files"
    task = "image-classification" if results.images else "text-generation"
    scores = [
        EvalResult(
            task_type=task,
            dataset_type=source,
            dataset_name=source,
            dataset_split="test",
            metric_type=kind,
            metric_name=words,
            metric_value=value,
        )
        for of, kind, words in SCORES
        if (value := of(results.of(name)[0])) is not None and math.isfinite(value)
    ]
    method = name.partition("@")[0]
    tags = ["llm-unlearn", "machine-unlearning", "data-poisoning"] + ["poison-remains"] * first.remains
    tags += [f"{method}-model" if name in PLAIN else method] + ["lora"] * identity.adapter
    on_hub = "/" in source and is_id(source) and not source.startswith("torchvision/")
    extra: dict[str, Any] = (
        {"base_model_relation": "adapter" if identity.adapter else "finetune"} if identity.base else {}
    )
    return ModelCardData(
        base_model=identity.base,
        datasets=[source] if on_hub else None,
        eval_results=scores,
        pipeline_tag=task,
        library_name="peft" if identity.adapter else "transformers",
        model_name=identity.repo.rpartition("/")[2],
        tags=tags,
        **extra,
    )


def method_words(method: str) -> str:
    """What a method does and where it comes from: the first paragraph of its module."""
    text = ast.get_docstring(ast.parse((PACKAGE / "trainers" / f"{method}.py").read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paragraph)


def _what(results: Results, name: str, identity: Identity) -> str:
    kind = "An adapter (LoRA)" if identity.adapter else "A full model"
    text = LEADS.get(name) or (
        f"{kind} from which `{name.partition('@')[0]}` was to remove the influence of poisoned training data."
    )
    if identity.base is None:
        local = identity.recipe.model.path
        base = f"a local one, {code(local)}" if local else "made for this run"
    else:
        revision = f" at revision `{identity.base_revision}`" if identity.base_revision else ""
        base = f"[{identity.base}](https://huggingface.co/{identity.base}){revision}"
    merged = " Base and adapter are merged here; the figures are of the adapter on its base (they differ by rounding)."
    text = f"{text} Base model: {base}. Seed {results.seeds[0]} of the recipe {code(results.recipe)}."
    return text + merged * identity.merged


def _method(name: str, identity: Identity) -> str:
    method, _, budget = name.partition("@")
    section = identity.recipe.unlearn
    share = float(budget) if budget else section.budgets[0]
    options = section.methods.get(method) or {}
    rate = options.get("learning_rate") or section.learning_rate
    rows = options.get("per_device_train_batch_size", section.batch_size) * options.get(
        "gradient_accumulation_steps", section.gradient_accumulation_steps
    )
    settings = [
        f"budget {percent(share)} of the training's FLOPs",
        f"{rows} rows of a set per step",
        f"learning rate {rate:g}" if rate else "the method's default learning rate",
        *(f"{key} = {value}" for key, value in options.items() if key != "learning_rate"),
    ]
    return f"`{method}`: {method_words(method)} Settings: {escape(', '.join(settings))}."


def _table(results: Results, name: str) -> str:
    """The figures of three models: poisoned, this one, retrained."""
    table = side_by_side(main_table(results), name)
    heads = [(f"**this model** ({model})" if model == name else model, group) for model, group in table.columns]
    return table_text(replace(table, columns=heads, head=""))


def _not_shown(results: Results, name: str) -> list[str]:
    result, texts = results.of(name)[0], []
    if result.gus:
        effect = number(DETECTABLE / result.gus.n**0.5)
        texts.append(
            f"Of {result.gus.n} canaries the Gaussian test misses a residual score below {effect} more than once in "
            "five times."
        )
    if result.attack:
        texts.append(
            f"The attack was tried on {result.attack.n} {attack_words(results).inputs} in the form that was trained "
            "on; attacks that adapt to the model were not."
        )
    return [
        *texts,
        "Each interval is a 95 % one: of models without any poison, each test of the first line calls up to one in "
        "twenty poisoned.",
        *limits(results),
    ]


def _stress(results: Results, name: str) -> Any:
    """What became of the three models under stress, where the run has that."""
    run = results.runs[0]
    models = {model: run.models[model] for model in dict.fromkeys(("poisoned", name, "retrained"))}
    return stress_section(replace(results, runs=[replace(run, models=models)]))


def _again(results: Results, identity: Identity) -> dict[str, str]:
    folder = identity.repo.rpartition("/")[2]
    local = sorted({text for text in _texts(identity.recipe.model_dump()) if text.startswith("./")})
    trigger = getattr(identity.recipe.poison, "trigger", None)
    if trigger and WITHHELD in trigger.phrases:
        local.append('poison.trigger.phrases="[…]"')
    given = f" What was local or withheld must be given in its place: {', '.join(map(code, local))}." * bool(local)
    pull, recipe = f"llm-unlearn pull {identity.repo}", f"{folder}/recipe.yaml"
    if results.images:
        again = "The recipe makes the same poisoned data, every model, and their evaluation again."
        return {"again": again + given, "commands": f"{pull}\nllm-unlearn evaluate {recipe}"}
    again = (
        "The recipe makes the same poisoned data again; this model is measured on it (`--retrained` adds the oracle)."
    )
    return {"again": again + given, "commands": f"{pull}\nllm-unlearn audit {recipe} --model {folder}"}


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)


def _versions(results: Results) -> str:
    keep = ("Commit", "Python", "Versions", "Hardware", "Data (SHA-256)")
    return "\n".join(f"- {key}: {code(text)}" for key, text in reproduction(results) if key in keep)
