"""A model of a run as a package for a hub: its weights, its tokenizer, the recipe, the evaluation, the card.

It holds no row of the data, no optimizer, no frozen reference (which is the poisoned model), no pickle, no token. The
trigger phrase is part of the recipe, since nobody could measure the model again without it; `withhold_trigger` leaves
it out.
"""

import dataclasses
import html
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.recipe_files import FILES, MODELS, fields_of
from llm_unlearn.config.strict import parse_yaml
from llm_unlearn.errors import InputError
from llm_unlearn.hub.package import CARD, Package, is_id, model_files, on_base
from llm_unlearn.hub.run_checks import check_base, check_measured, merge_of
from llm_unlearn.hub.upload import check_repository
from llm_unlearn.runs.run_folder import find_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from llm_unlearn.config.recipe import Recipe
    from llm_unlearn.reporting.run_results import Results

OR_IDS = (("data", "source"), *MODELS)  # fields that name local ones or those of a hub
LOCAL = (*OR_IDS, *FILES)


def package_run(
    run_dir: str | Path,
    model: str,
    repo: str,
    *,
    seed: int | None = None,
    base: str | None = None,
    merged: bool = False,
    withhold_trigger: bool = False,
    api: "HfApi | None" = None,
) -> Package:
    """What is uploaded of a model of a run.

    Args:
        run_dir: the run directory.
        model: its name; see find_model.
        repo: owner/name.
        seed: which, of a run with several.
        base: the hub id of what an adapter sits on, where the recipe names a folder or makes the base. It must be on
            the hub with the same config and weight files.
        merged: take what `merge` wrote in the run directory in place of the adapter. It must be a merge of the model
            and the base that were evaluated.
        withhold_trigger: leave the phrase out of recipe and card.
        api: the hub's client; by default one with the token that is logged in.

    Raises:
        InputError: there is no such model, what was evaluated or merged is not what lies there now, or its base is not
            on the hub.
    """
    from llm_unlearn.hub.card import Identity, compose_card
    from llm_unlearn.hub.loading_code import loading_code
    from llm_unlearn.reporting.benchmark_section import benchmark_plots
    from llm_unlearn.reporting.plots import all_plots
    from llm_unlearn.reporting.run_results import read_results

    check_repository(repo)
    if base == repo:
        raise InputError(f"--base {base}: is the repository to which the model itself goes; give each its own")
    source = find_model(run_dir, model, seed)
    results = read_results(source.folder)
    if model not in results.names:
        raise InputError(
            f"{source.folder / 'evaluation' / model}.json: no such file; a model is published with its "
            f"audit: llm-unlearn evaluate {source.root / 'recipe.yaml'}"
        )
    shown = [name for name in dict.fromkeys(("poisoned", "retrained", model)) if name in results.names]
    check_measured(source, shown)
    folder, dtype = merge_of(source) if merged else (source.path, None)
    files: dict[str, Any] = model_files(folder)
    adapter = "adapter_config.json" in files
    own = source.base if is_id(source.base) else None
    on_hub = base or own
    revision = source.recipe.model.revision if own and on_hub == own else None  # it is the recipe's repository's
    if adapter and on_hub is None:
        raise InputError(
            f"{source.path}: an adapter on {source.base or 'a base that is not there any more'}, which "
            "nobody else has. Push that too (--model base) and name it (--base OWNER/NAME), or push the "
            f"merged model (llm-unlearn merge {source.root} --model {source.name}, then --merged)"
        )
    if on_hub and (adapter or base):
        check_base(source, on_hub, revision, api)
    if adapter:
        files["adapter_config.json"] = on_base(files["adapter_config.json"], on_hub, revision)
    recipe = published_recipe(source.recipe, source.seed, repo, on_hub, revision, withhold_trigger)
    plots = [*benchmark_plots(results), *all_plots(results)]
    loading = loading_code(repo, images=results.images)
    if adapter:
        section = recipe.model
        loading = loading_code(
            repo, on_hub, base_revision=revision, dtype=section.dtype, quantization=section.quantization
        )
    identity = Identity(repo, recipe, loading, on_hub, revision, adapter, dtype)
    card = compose_card(_without_trigger(results) if withhold_trigger else results, model, identity, plots)
    evaluations = {f"evaluation/{name}.json": source.folder / "evaluation" / f"{name}.json" for name in shown}
    package = Package(
        {
            CARD: card.encode(),
            **files,
            "recipe.yaml": recipe.to_yaml().encode(),
            **evaluations,
            **{f"plots/{plot.name}.png": plot.content for plot in plots},
        }
    )
    phrases = (results.runs[0].poison.get("trigger") or {}).get("phrases", []) if withhold_trigger else []
    _check_words(package, [str(source.root.resolve()), *phrases])
    return package


def _check_words(package: Package, words: list[str]) -> None:
    """Raise InputError if a word that must stay here is in the card, the recipe or an evaluation."""
    for name in package.files:
        if name in (CARD, "recipe.yaml", "config.json", "adapter_config.json") or name.startswith("evaluation/"):
            said = list(map(_folded, _strings(name, package.content(name).decode(errors="replace"))))
            if named := [word for word in words if any(_folded(word) in text for text in said)]:
                raise InputError(
                    f"{name}: “{named[0]}” would go up with it, in the name of the recipe perhaps; change that first"
                )


def _strings(name: str, text: str) -> Iterator[str]:
    """A text, and where it is YAML or JSON the strings that it stands for: long ones are folded and escaped there."""
    left: list[Any] = [html.unescape(text)]
    if name != CARD:
        left.append(parse_yaml(text, name) if name.endswith(".yaml") else json.loads(text))
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        else:
            yield str(value)


def _folded(text: str) -> str:
    """A text as a reader takes it: whatever its case, white space and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def published_recipe(
    recipe: "Recipe",
    seed: int,
    repo: str,
    base: str | None = None,
    revision: str | None = None,
    withhold_trigger: bool = False,
) -> "Recipe":
    """The recipe of one seed as others can run it: no path of this machine, no sweep, a directory of its own.

    What is local becomes `./name`, which the reader must supply, and which no hub takes for an id.

    Args:
        recipe: of the run.
        seed: the one that is published.
        repo: owner/name.
        base: the hub id of the model that it starts from.
        revision: of the base.
        withhold_trigger: leave the phrase out.
    """
    from llm_unlearn.config.recipe import build_recipe
    from llm_unlearn.config.recipe_files import WITHHELD

    tree = recipe.model_dump()
    for section, name in LOCAL:
        if (value := (fields := fields_of(tree, section)).get(name)) is not None:
            fields[name] = _without_folders(value, always=(section, name) not in OR_IDS)
    tree |= {"seeds": [seed], "output_dir": f"runs/{repo.replace('/', '--')}", "sweep": {}}
    tree["data"].pop("root", None)  # where data sets are kept: anybody's own
    if tree.get("pretrain"):
        tree["pretrain"]["cache_dir"] = None
    if recipe.model.path is not None:
        tree["model"]["path"] = base or f"./{Path(recipe.model.path).name}"
        if "revision" in tree["model"]:
            tree["model"]["revision"] = revision
    if withhold_trigger and (trigger := tree["poison"].get("trigger")):
        trigger["phrases"] = [WITHHELD]
        if tree.get("stress"):
            tree["stress"]["paraphrases"] = []
    return build_recipe(tree)


def _without_folders(value: Any, always: bool) -> Any:
    """A path, or a list of them, as `./name`; of what may be a hub's id, only what is a path."""
    if isinstance(value, list):
        return [_without_folders(item, always) for item in value]
    local = isinstance(value, str) and (always or value.startswith(("/", "~", ".", "file:")) or Path(value).exists())
    return f"./{Path(value).name}" if local else value


def _without_trigger(results: "Results") -> "Results":
    from llm_unlearn.config.recipe_files import WITHHELD

    runs = [
        dataclasses.replace(run, poison={**run.poison, "trigger": {**run.poison["trigger"], "phrases": [WITHHELD]}})
        if run.poison.get("trigger")
        else run
        for run in results.runs
    ]
    return dataclasses.replace(results, runs=runs)
