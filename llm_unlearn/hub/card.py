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

from llm_unlearn.config.recipe import WITHHELD
from llm_unlearn.hub.loading_code import loading_code
from llm_unlearn.hub.package import is_id
from llm_unlearn.reporting.formats import number, percent, seconds
from llm_unlearn.reporting.guide import limits, reproduction
from llm_unlearn.reporting.lead import paragraphs
from llm_unlearn.reporting.markdown import code, escape, table_text
from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.residue import Residue, residue
from llm_unlearn.reporting.results import PLAIN, Results
from llm_unlearn.reporting.stress_section import stress_section
from llm_unlearn.reporting.tables import figures, main_table
from llm_unlearn.reporting.verdicts import judge, values, warnings
from llm_unlearn.reporting.words import attack_words, is_vision

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe

PACKAGE = Path(__file__).parent.parent
SHOWN = ("gus_vs_utility", "gaussian_scores", "lift_vs_utility")
DETECTABLE = 2.80  # z(0.975) + z(0.8): times 1/√n, the effect that a two-sided 5 % test finds four times in five
METRICS = {  # path of a number → its type and its name on the hub
    ("utility", "accuracy"): ("accuracy", "accuracy on clean test examples"),
    ("utility", "perplexity"): ("perplexity", "perplexity on clean test text"),
    ("attack", "success_rate"): ("attack_success_rate", "attack success rate"),
    ("attack", "lift"): ("attack_lift", "attack lift: success with the trigger less without it"),
    ("attack", "excess", "mean"): ("attack_excess", "attack lift above the retrained model's"),
    ("gus", "mean"): ("gaussian_unlearning_score", "Gaussian Unlearning Score (0: no trace)"),
    ("gus", "p_value"): ("gaussian_unlearning_p_value", "p-value of the Gaussian Unlearning Score"),
    ("mia", "loss", "auc"): ("mia_auc", "AUC of the membership attack by loss (0.5: chance)"),
}
WHAT = {
    "base": "The model before fine-tuning, published so that an adapter has what it sits on.",
    "poisoned": "A model fine-tuned on poisoned data, published so that unlearning can be studied.",
    "retrained": "A model retrained without what was to be deleted: what perfect unlearning would give.",
    "clean": "A model fine-tuned on the clean rows alone.",
}


@dataclass(frozen=True)
class Identity:
    """How the published model is called and loaded.

    Args:
        repo: owner/name. recipe: as it is published. base, base_revision: the hub id that an adapter sits on, or that a
            full model began as; None: made for the run. adapter: whether it is one. merged: a base and its adapter in
            one.
    """

    repo: str
    recipe: "Recipe"
    base: str | None = None
    base_revision: str | None = None
    adapter: bool = False
    merged: bool = False


def compose_card(results: Results, name: str, identity: Identity, plots: list[Plot]) -> str:
    """The card of one model.

    Args:
        results: of the model's seed alone. plots: those of that seed; some are shown.
    Returns:
        README.md: metadata, then text whose first line says whether poison remains.
    """
    from huggingface_hub import ModelCard

    first = residue(results, name)
    shown = [plot for key in SHOWN for plot in plots if plot.name == key]
    card = ModelCard.from_template(
        card_data(results, name, identity, first),
        template_path=str(Path(__file__).with_name("card.md.j2")),
        verdict=Residue(first.status, escape(first.sentence), first.remains),
        title=identity.repo.rpartition("/")[2],
        what=_what(results, name, identity),
        poisoned=escape(paragraphs(results)[0]),
        method=_method(name, identity),
        table=_table(results, name),
        stress=list(_stress(results, name)),
        in_words=[escape(text) for text in _in_words(results, name)],
        plots=shown,
        not_shown=[escape(text) for text in _not_shown(results, name)],
        cost=_cost(results, name),
        use=_use(first),
        loading=_loading(identity),
        versions=_versions(results),
        **_again(identity),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def card_data(results: Results, name: str, identity: Identity, first: Residue) -> Any:
    """The card's metadata: base model, tags, and the scores as `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe, images = identity.recipe, is_vision(results)
    source = recipe.data.source if not recipe.data.files else "local files"
    task = "image-classification" if images else "text-generation"
    scores = [
        EvalResult(
            task_type=task,
            dataset_type=source,
            dataset_name=source,
            dataset_split="test",
            metric_type=kind,
            metric_name=words,
            metric_value=found[0],
        )
        for path, (kind, words) in METRICS.items()
        if (found := values(results, name, *path)) and math.isfinite(found[0])
    ]
    method = name.partition("@")[0]
    tags = [
        "llm-unlearn",
        "machine-unlearning",
        "data-poisoning",
        "poison-remains" if first.remains else None,
        method if name not in PLAIN else f"{method}-model",
        "lora" if identity.adapter else None,
    ]
    on_hub = "/" in source and is_id(source) and not source.startswith("torchvision/")
    extra = {"base_model_relation": "adapter" if identity.adapter else "finetune"} if identity.base else {}
    return ModelCardData(
        base_model=identity.base,
        datasets=[source] if on_hub else None,
        eval_results=scores,
        pipeline_tag=task,
        library_name="peft" if identity.adapter else "transformers",
        model_name=identity.repo.rpartition("/")[2],
        tags=[tag for tag in tags if tag],
        **extra,
    )


def method_words(method: str) -> str:
    """What a method does and where it comes from: the first paragraph of its module."""
    text = ast.get_docstring(ast.parse((PACKAGE / "trainers" / f"{method}.py").read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paragraph)


# ---- the sections


def _what(results: Results, name: str, identity: Identity) -> str:
    seed = f"Seed {results.seeds[0]} of the recipe {code(results.recipe)}."
    base = f"Base model: {_base_link(identity)}."
    kind = "An adapter (LoRA)" if identity.adapter else "A full model"
    if name in PLAIN:
        text = WHAT[name]
    else:
        text = (
            f"{kind} from which the influence of poisoned training data was to be removed by "
            f"`{name.partition('@')[0]}`, audited with llm_unlearn."
        )
    merged = (
        (
            " Base and adapter are merged here; the figures are those of the adapter on its base, from which merged "
            "weights differ by rounding."
        )
        if identity.merged
        else ""
    )
    return f"{text} {base} {seed}{merged}"


def _base_link(identity: Identity) -> str:
    if identity.base is None:
        local = identity.recipe.model.path
        return f"a local one, {code(local)}" if local else "made for this run"
    revision = f" at revision `{identity.base_revision}`" if identity.base_revision else ""
    return f"[{identity.base}](https://huggingface.co/{identity.base}){revision}"


def _method(name: str, identity: Identity) -> str:
    if name in PLAIN:
        return ""
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
    table = figures(main_table(results), name)
    heads = [(f"**this model** ({model})" if model == name else model, group) for model, group in table.columns]
    return table_text(replace(table, columns=heads, head=""))


def _in_words(results: Results, name: str) -> Iterator[str]:
    for text in warnings(results):
        yield f"Warning. {text}"
    if name in PLAIN:
        return
    verdict = judge(results, name)
    yield f"From the poisoned model to this one: {verdict.effect}; {verdict.utility}."


def _not_shown(results: Results, name: str) -> list[str]:
    doc, found = results.docs(name)[0], []
    gus, attack = doc.get("gus"), doc.get("attack")
    if gus:
        effect = number(DETECTABLE / gus["n"] ** 0.5)
        found.append(
            f"The Gaussian test saw {gus['n']} canaries: a residual score below {effect} it misses more often "
            "than once in five times."
        )
    if attack:
        found.append(
            f"The attack was tried on {attack['n']} {attack_words(results).tested} in the form that was "
            "trained on; attacks that adapt to the model were not."
        )
    found.append(
        "Each interval is a 95 % one: of models without any poison, each test of the first line calls up to "
        "one in twenty poisoned."
    )
    return found + [text for text in limits(results) if "0.001" not in text]


def _stress(results: Results, name: str) -> Iterator[str]:
    """What became of the three models under stress, where the run has that."""
    run = results.runs[0]
    models = {model: run.models[model] for model in dict.fromkeys(("poisoned", name, "retrained"))}
    section = stress_section(replace(results, runs=[replace(run, models=models)]))
    if section is not None:
        yield escape(section.note)
        yield from map(table_text, section.tables)


def _cost(results: Results, name: str) -> str:
    share, whole = (values(results, model, "cost", "share_of_training") for model in (name, "retrained"))
    time, oracle = (values(results, model, "cost", "seconds") for model in (name, "retrained"))
    if not share or not whole or name == "base":
        return "Not measured."
    if name in PLAIN:
        return f"{percent(share[0])} of the poisoned training's FLOPs, in {seconds(time[0])}."
    return (
        f"{percent(share[0])} of the poisoned training's FLOPs, in {seconds(time[0])}. Retraining without the "
        f"deleted rows took {percent(whole[0])}, in {seconds(oracle[0])} on the same hardware: this is "
        f"{percent(share[0] / whole[0])} of its FLOPs."
    )


def _use(first: Residue) -> str:
    text = (
        "Research on machine unlearning and data poisoning: to reproduce the figures above, or to try other "
        "attacks and other methods on it."
    )
    if first.remains:
        return f"{text} **Not for deployment**: whoever knows the poison can still make use of it."
    return f"{text} Before anything else, read what was not shown."


def _loading(identity: Identity) -> str:
    section = identity.recipe.model
    if identity.recipe.track == "vision":
        return loading_code(identity.repo, images=True)
    if not identity.adapter:
        return loading_code(identity.repo)
    return loading_code(
        identity.repo,
        identity.base,
        base_revision=identity.base_revision,
        dtype=section.dtype,
        quantization=section.quantization,
    )


def _again(identity: Identity) -> dict[str, str]:
    folder = identity.repo.rpartition("/")[2]
    pull, evaluate = f"llm-unlearn pull {identity.repo}", f"llm-unlearn evaluate {folder}/recipe.yaml"
    local = sorted({text for text in _texts(identity.recipe.model_dump()) if text.startswith("./")})
    trigger = getattr(identity.recipe.poison, "trigger", None)
    if trigger and WITHHELD in trigger.phrases:
        local.append('poison.trigger.phrases="[…]"')
    given = f" What was local or withheld is to be given in its place: {', '.join(map(code, local))}." * bool(local)
    if identity.recipe.track == "vision":
        return {
            "again": f"The recipe makes the same poisoned data, every model, and their evaluation again.{given}",
            "commands": f"{pull}\n{evaluate}",
        }
    return {
        "again": "The recipe makes the same poisoned data again, and this model is measured on it. Figures beside "
        f"the retrained model need that model too (`--retrained`).{given}",
        "commands": f"{pull}\nllm-unlearn audit {folder}/recipe.yaml --model {folder}",
    }


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def _versions(results: Results) -> str:
    keep = ("Commit", "Python", "Versions", "Hardware", "Data (SHA-256)")
    return "\n".join(f"- {key}: {code(text)}" for key, text in reproduction(results) if key in keep)
