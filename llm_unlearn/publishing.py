"""A model of a run as a package for a hub: its weights, its tokenizer, the recipe, the evaluation, the card.

Never the data or any row of it, no optimizer, no frozen reference (it is the poisoned model), no pickle, no token. The
trigger phrase is part of the recipe, without which nobody could measure the model again; `withhold_trigger` keeps it
back.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError
from llm_unlearn.hub import CARD, Package, check_repository, explained, model_files, on_base
from llm_unlearn.run_folder import RunModel, find_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from llm_unlearn.recipe import Recipe
    from llm_unlearn.reporting.results import Results

WITHHELD = "[withheld]"


def package_run(
    run_dir: str | Path, model: str, repo: str, *, seed: int | None = None, base: str | None = None,
    merged: bool = False, withhold_trigger: bool = False, api: "HfApi | None" = None,
) -> Package:
    """What is uploaded of a model of a run.

    Args:
        model, seed: see find_model. repo: owner/name. base: the hub id of what an adapter sits on, where the recipe
            names a folder or makes it; it must be there, with the same config. merged: take what `merge` wrote in the
            run directory in the place of the adapter. withhold_trigger: leave the phrase out of recipe and card.
    Raises:
        InputError: there is no such model, it was not evaluated, or its base is not on the hub.
    """
    from llm_unlearn.reporting.model_card import Identity, compose_card
    from llm_unlearn.reporting.plots import all_plots
    from llm_unlearn.reporting.results import read_results

    check_repository(repo)
    found, results = find_model(run_dir, model, seed), None
    folder = _merged_folder(found) if merged else found.path
    results = read_results(found.folder)
    if model not in results.names:
        raise InputError(f"{found.folder / 'evaluation' / model}.json: no such file; a model is published with its "
                         f"audit: llm-unlearn evaluate {found.root / 'recipe.yaml'}")
    files: dict[str, Any] = model_files(folder)
    adapter = "adapter_config.json" in files
    on_hub = base or (None if found.base is None or Path(found.base).expanduser().exists() else found.base)
    if adapter:
        _check_base(found, on_hub, base, api)
        files["adapter_config.json"] = on_base(files["adapter_config.json"], on_hub, found.recipe.model.revision)
    recipe = published_recipe(found.recipe, found.seed, on_hub, withhold_trigger)
    plots = all_plots(results)
    identity = Identity(repo, recipe, on_hub, found.recipe.model.revision if on_hub and not base else None, adapter,
                        merged)
    card = compose_card(_without_trigger(results) if withhold_trigger else results, model, identity, plots)
    evaluations = {f"evaluation/{name}.json": found.folder / "evaluation" / f"{name}.json"
                   for name in dict.fromkeys(("poisoned", "retrained", model))}
    return Package({CARD: card.encode(), **files, "recipe.yaml": recipe.to_yaml().encode(), **evaluations,
                    **{f"plots/{plot.name}.png": plot.content for plot in plots}})


def published_recipe(
    recipe: "Recipe", seed: int, base: str | None = None, withhold_trigger: bool = False
) -> "Recipe":
    """The recipe of one seed as others are to run it: no path of this machine, no sweep.

    Args:
        base: the hub id of the model that it starts from. What is local stands as `./name`, which whoever runs it is to
            give, and which no hub takes for an id of its own.
    """
    from llm_unlearn.recipe import build_recipe

    tree = _without_places(dataclasses.asdict(recipe))
    tree |= {"seeds": [seed], "output_dir": f"runs/{Path(recipe.output_dir).name}", "sweep": {}}
    if recipe.model.path is not None:
        tree["model"]["path"] = base or f"./{Path(recipe.model.path).name}"
    if tree.get("pretrain"):
        tree["pretrain"]["cache_dir"] = None
    if withhold_trigger and (trigger := tree["poison"].get("trigger")):
        trigger["phrases"] = [WITHHELD]
    return build_recipe(tree)


def _without_places(node: Any) -> Any:
    """A tree in which of every absolute path, and of one that leaves the working directory, the last part is left."""
    if isinstance(node, dict):
        return {key: _without_places(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_places(value) for value in node]
    if isinstance(node, str) and node.startswith(("/", "~", "..")) and "\n" not in node:
        return f"./{Path(node).name}"
    return node


def _without_trigger(results: "Results") -> "Results":
    runs = [dataclasses.replace(run, poison={**run.poison, "trigger": {**run.poison["trigger"], "phrases": [WITHHELD]}})
            if run.poison.get("trigger") else run for run in results.runs]
    return dataclasses.replace(results, runs=runs)


def _merged_folder(found: RunModel) -> Path:
    folder = found.folder / "merged" / found.name
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it: llm-unlearn merge {found.root} --model {found.name}")
    return folder


def _check_base(found: RunModel, on_hub: str | None, given: str | None, api: "HfApi | None") -> None:
    """Refuse an adapter whose base others could not get, or that was trained on another base than is named."""
    if on_hub is None:
        raise InputError(f"{found.path}: an adapter on {found.base or 'a base that is not there any more'}, which "
                         "nobody else has. Push that too (--model base) and name it (--base OWNER/NAME), or push the "
                         f"merged model (llm-unlearn merge {found.root} --model {found.name}, then --merged)")
    if not given or found.base is None or not (Path(found.base) / "config.json").is_file():
        return
    from huggingface_hub import HfApi

    api = api or HfApi()
    with explained(api, given):
        theirs = json.loads(Path(api.hf_hub_download(given, "config.json")).read_text(encoding="utf-8"))
    ours = json.loads((Path(found.base) / "config.json").read_text(encoding="utf-8"))
    differ = sorted(key for key in ours if key not in ("_name_or_path", "transformers_version")
                    and theirs.get(key) != ours[key])
    if differ:
        raise InputError(f"--base {given}: is not what the adapter was trained on ({found.base}): {', '.join(differ)} "
                         "differ in its config.json")
