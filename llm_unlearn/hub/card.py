"""The card of a published model: what was poisoned, what the audit found, and what it did not show.

Made of the evaluations alone, on huggingface_hub's card classes; scores stand in `model-index`, so that hubs show them.
"""

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.presets import preset_of
from llm_unlearn.config.recipe_files import WITHHELD
from llm_unlearn.hub.first_line import FirstLine, first_line
from llm_unlearn.hub.package import is_id
from llm_unlearn.metrics.evidence import ALPHA
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.benchmark_section import benchmark_section
from llm_unlearn.reporting.contents import Plot
from llm_unlearn.reporting.figures import Figure
from llm_unlearn.reporting.formats import number, percent
from llm_unlearn.reporting.guide import limits, reproduction
from llm_unlearn.reporting.lm_eval_section import lm_eval_section
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
SHOWN = ("benchmark", "gus_vs_utility", "loss_rank_vs_utility", "gaussian_scores", "lift_vs_utility")
SCORES: list[tuple[Figure, str, str]] = [  # a number, its type and its name on the hub
    (figures.accuracy, "accuracy", "accuracy on clean test examples"),
    (figures.perplexity, "perplexity", "perplexity on clean test text"),
    (figures.success_rate, "attack_success_rate", "attack success rate"),
    (figures.lift, "attack_lift", "attack lift: success with the trigger less without it"),
    (figures.excess, "attack_excess", "attack lift above the retrained model's"),
    (figures.gus, "gaussian_unlearning_score", "Gaussian Unlearning Score (0: no trace)"),
    (figures.gus_p, "gaussian_unlearning_p_value", "p-value of the Gaussian Unlearning Score"),
    (figures.string_rank, "canary_rank", "mean rank of the token canaries' strings (0: no trace)"),
    (figures.string_rank_p, "canary_rank_p_value", "p-value of the mean rank of the token canaries' strings"),
    (figures.auc("loss"), "mia_auc", "AUC of the membership attack by loss (0.5: chance)"),
    (figures.forget_quality, "tofu_forget_quality", "TOFU forget quality (p-value; 1: as the retrained model)"),
    (figures.model_utility, "tofu_model_utility", "TOFU model utility"),
    (figures.privleak, "muse_privleak", "MUSE PrivLeak in per cent (0: as the retrained model)"),
    (figures.benchmark_score("forget_verbmem"), "muse_verbmem", "MUSE verbatim memorisation of forget rows"),
    (figures.benchmark_score("forget_knowmem"), "muse_knowmem_forget", "MUSE knowledge of forget rows"),
    (figures.benchmark_score("retain_knowmem"), "muse_knowmem_retain", "MUSE knowledge of retain rows"),
    (figures.benchmark_score("accuracy"), "wmdp_accuracy", "WMDP accuracy (multiple choice)"),
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
        merged: the type of the weights of a base and its adapter in one; None: it is none.
    """

    repo: str
    recipe: "Recipe"
    loading: str
    base: str | None = None
    base_revision: str | None = None
    adapter: bool = False
    merged: str | None = None


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
        benchmark=_benchmark(results, name),
        warnings=[escape(text) for text in warnings(results)],
        stress=[escape(section.note), *map(table_text, section.tables)] if section else [],
        plots=[plot for key in SHOWN for plot in plots if plot.name == key],
        not_shown=[escape(text) for text in _not_shown(results, name, identity)],
        use="**Not for deployment**: whoever knows the poison can still make use of it." if first.remains else "",
        loading=identity.loading,
        **_again(results, identity),
        versions=_versions(results),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _metadata(results: Results, name: str, identity: Identity, first: FirstLine) -> Any:
    """The card's metadata: base model, tags, and the scores as `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe, result, method = identity.recipe, results.of(name)[0], name.partition("@")[0]
    source = "local files" if recipe.data.files or results.given else recipe.data.source
    task = "image-classification" if results.images else "text-generation"
    where = {"dataset_type": source, "dataset_name": source, "dataset_split": "test"}
    measured_on: dict[str, Any] = {"task_type": task, **where}
    scores = [
        EvalResult(metric_type=kind, metric_name=words, metric_value=value, **measured_on)
        for of, kind, words in SCORES
        if (value := of(result)) is not None and math.isfinite(value)
    ]
    tags = ["llm-unlearn", "machine-unlearning", "data-poisoning"] + ["poison-remains"] * first.remains
    tags += [f"{method}-model" if name in PLAIN else method] + ["lora"] * identity.adapter
    on_hub = "/" in source and is_id(source) and not source.startswith("torchvision/")
    relation = {"base_model_relation": "adapter" if identity.adapter else "finetune"} if identity.base else {}
    return ModelCardData(
        base_model=identity.base,
        datasets=[source] if on_hub else None,
        eval_results=scores,
        pipeline_tag=task,
        library_name="peft" if identity.adapter else "transformers",
        model_name=identity.repo.rpartition("/")[2],
        tags=tags,
        **relation,  # type: ignore[arg-type]  # further keys are texts
    )


def method_words(method: str) -> str:
    """What a method does and where it comes from: the first paragraph of its module."""
    text = ast.get_docstring(ast.parse((PACKAGE / "trainers" / f"{method}.py").read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paragraph)


def _what(results: Results, name: str, identity: Identity) -> str:
    kind = "An adapter (LoRA)" if identity.adapter else "A full model"
    method, local = name.partition("@")[0], identity.recipe.model.path
    text = LEADS.get(name) or f"{kind} from which `{method}` was to remove the influence of poisoned training data."
    base = f"a local one, {code(local)}" if local else "made for this run"
    if identity.base:
        revision = f" at revision `{identity.base_revision}`" if identity.base_revision else ""
        base = f"[{identity.base}](https://huggingface.co/{identity.base}){revision}"
    text = f"{text} Base model: {base}. Seed {results.seeds[0]} of the recipe {code(results.recipe)}."
    if identity.merged is None:
        return text
    bits = {"4bit": " in 4 bits (dequantised)", "8bit": " in 8 bits (dequantised)"}
    onto = bits.get(identity.recipe.model.quantization, "")
    merged = f"Base{onto} and adapter are merged here, rounded to {identity.merged}"
    return f"{text} {merged}; the figures are of the adapter on its base."


def _method(name: str, identity: Identity) -> str:
    method, _, budget = name.partition("@")
    section = identity.recipe.unlearn
    share = float(budget) if budget else section.budgets[0]
    unit = vars(section).get("budget_in", "training")
    spent = f"{percent(share)} of the training's FLOPs" if unit == "training" else f"{share:g} {unit}"
    options = preset_of(section.preset, method) | (section.methods.get(method) or {})
    own = (section.methods.get(method) or {}).get("learning_rate")
    rate = own or section.learning_rate or options.get("learning_rate")
    rows = options.get("per_device_train_batch_size", section.batch_size) * options.get(
        "gradient_accumulation_steps", section.gradient_accumulation_steps
    )
    settings = [
        f"budget {spent}",
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


def _benchmark(results: Results, name: str) -> list[str]:
    """The figures of the benchmark and of lm-evaluation-harness of three models, where the run has them."""
    sections = [section for of in (benchmark_section, lm_eval_section) if (section := of(results)) is not None]
    return [
        text
        for section in sections
        for text in (escape(section.note), *(table_text(side_by_side(table, name)) for table in section.tables))
    ]


def _one_seed(results: Results, identity: Identity) -> str:
    """That the card decides on one training alone, unlike the report."""
    text = f"This card, its first line included, is of one training alone, seed {results.seeds[0]}."
    if (count := len(identity.recipe.seeds)) > 1:
        text += f" The report of its run pools {count} seeds, which find what one does not, and may decide otherwise."
    return text


def _not_shown(results: Results, name: str, identity: Identity) -> list[str]:
    result, texts = results.of(name)[0], [_one_seed(results, identity)]
    if identity.merged is not None:
        loss = "" if identity.merged == "float32" else f"; rounding to {identity.merged} can undo a small change"
        texts.append(f"The merged weights themselves were not measured, only the adapter on its base{loss}.")
    for found in judge(results, name).decision.limits:
        if found.critical is not None:
            texts.append(
                f"With {found.n} canaries the test by {found.test} misses a residual mean score below "
                f"{number(found.detectable)} more than once in five times."
            )
    if result.attack:
        inputs = f"{result.attack.n} {attack_words(results).inputs}"
        texts.append(
            f"The attack was tried on {inputs} in the form that was trained on; attacks that adapt to the model were "
            "not."
        )
    texts.append(
        f"The first line holds at a level of {ALPHA:g}: of models without any poison it accuses up to {100 * ALPHA:g} "
        "in 100."
    )
    return texts + limits(results)


def _stress(results: Results, name: str) -> Any:
    """What became of the three models under stress, where the run has that."""
    run = results.runs[0]
    names = [model for model in dict.fromkeys(("poisoned", name, "retrained")) if model in run.models]
    models = {model: run.models[model] for model in names}
    return stress_section(replace(results, runs=[replace(run, models=models)]))


def _again(results: Results, identity: Identity) -> dict[str, str]:
    folder = identity.repo.rpartition("/")[2]
    local = sorted({text for text in _texts(identity.recipe.model_dump()) if text.startswith("./")})
    trigger = getattr(identity.recipe.poison, "trigger", None)
    if trigger and WITHHELD in trigger.phrases:
        local.append('poison.trigger.phrases="[…]"')
    given = f" What was local or withheld must be given in its place: {', '.join(map(code, local))}." * bool(local)
    command = f"audit {folder}/recipe.yaml --model {folder}"
    again = (
        "The recipe makes the same poisoned data again; this model is measured on it (`--retrained` adds the oracle; "
        "`--poisoned`, the model from before unlearning, is needed for a verdict of no trace)."
    )
    if results.images:
        command = f"evaluate {folder}/recipe.yaml"
        again = "The recipe makes the same poisoned data, every model, and their evaluation again."
    return {"again": again + given, "commands": f"llm-unlearn pull {identity.repo}\nllm-unlearn {command}"}


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)


def _versions(results: Results) -> str:
    keep = ("Commit", "Python", "Versions", "Hardware", "Data (SHA-256)")
    return "\n".join(f"- {key}: {code(text)}" for key, text in reproduction(results) if key in keep)
