"""The models of a run, by name: what `merge` and `push` take in the place of a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError
from llm_unlearn.files import write_json
from llm_unlearn.runs.folder_lock import locked_folder
from llm_unlearn.runs.model_hashes import model_hash, model_hashes

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import Recipe
    from llm_unlearn.models.merging import Onto


MERGE = "merge.json"  # in the folder of a merged model: how it was merged, and of what


@dataclass(frozen=True)
class RunModel:
    """A finished model of a run.

    Args:
        recipe: the run's recipe.
        root: the run directory.
        folder: the folder of the model's seed; the run directory itself if the run has one seed.
        name: the model's name, as in `find_model`.
        path: the folder of the model itself.
        seed: the seed that it was trained with.
        base: the hub id or folder that the run started from; None if the base was made for the run and is gone, or if
            a classifier was made anew.
    """

    recipe: "Recipe"
    root: Path
    folder: Path
    name: str
    path: Path
    seed: int
    base: str | None


def find_model(run_dir: str | Path, model: str, seed: int | None = None) -> RunModel:
    """Look a model up in a run directory.

    Args:
        run_dir: the run directory.
        model: base, poisoned, retrained, clean, or a method, with its budget where there are several (`npo@0.1`).
        seed: the seed of the model; needed if the run has several.

    Raises:
        InputError: no run, no such seed, or no such model (yet).
    """
    from llm_unlearn.config.recipe_files import load_recipe
    from llm_unlearn.runs.tracks import track_of

    root = Path(run_dir).expanduser()
    if not (root / "recipe.yaml").is_file():
        raise InputError(f"{run_dir}: is no run directory: it has no recipe.yaml (working directory: {Path.cwd()})")
    recipe = load_recipe(root / "recipe.yaml")
    folder, seed = _seed_folder(root, recipe, seed)
    base = track_of(recipe).base_of_run(recipe, root)
    places = {
        path.name: path
        for path in (folder / "poisoned", folder / "retrained", folder / "clean", *sorted(folder.glob("unlearned/*")))
        if (path / "cost.json").is_file()
    }
    if base and Path(base).is_dir():
        places = {"base": Path(base), **places}
    if model not in places:
        raise InputError(f"--model {model}: {folder} has {', '.join(places) or 'no model yet'}")
    return RunModel(recipe, root, folder, model, places[model], seed, base)


def _seed_folder(root: Path, recipe: "Recipe", seed: int | None) -> tuple[Path, int]:
    """Where the models of a seed lie: the run directory itself, or of a run with several `seed-<s>/`."""
    known = ", ".join(map(str, recipe.seeds))
    if seed is None and len(recipe.seeds) > 1:
        raise InputError(f"{root}: has the seeds {known}; say which (--seed)")
    if seed is not None and seed not in recipe.seeds:
        raise InputError(f"--seed {seed}: {root} has {known}")
    chosen = recipe.seeds[0] if seed is None else seed
    return (root if len(recipe.seeds) == 1 else root / f"seed-{chosen}"), chosen


def merge_run(
    run_dir: str | Path,
    model: str,
    *,
    seed: int | None = None,
    out: str | None = None,
    dtype: str = "float32",
    onto: "Onto" = "dequantised",
) -> Path:
    """Merge a model of a run, and write down of what and how (`merge.json`), by which `push` knows it again.

    Args:
        run_dir: the run directory.
        model: poisoned, retrained, clean, or a method, with its budget where there are several (`npo@0.1`).
        seed: the seed of the model; needed if the run has several.
        out: the folder to write; by default `merged/<model>` in the folder of the seed.
        dtype: the type of the merged weights, as in `merge_adapter`.
        onto: the weights onto which the adapter is merged, as in `merge_adapter`.

    Returns:
        the folder that was written.

    Raises:
        InputError: no run, no such model, a run of images, or what merge_adapter refuses.
    """
    from llm_unlearn.models.merging import check_adapter, merge_adapter
    from llm_unlearn.runs.tracks import track_of

    found = find_model(run_dir, model, seed)
    if not track_of(found.recipe).checkpoints:
        raise InputError(f"{run_dir}: a run of images, which has no adapters to merge")
    check_adapter(found.path)
    if found.base is None:
        raise InputError(
            f"{run_dir}: the base that was made for the run is not there; make it again: "
            f"llm-unlearn poison {found.root / 'recipe.yaml'}"
        )
    target = Path(out).expanduser() if out else found.folder / "merged" / model
    with locked_folder(found.root):  # a run would replace what is read
        merged = merge_adapter(found.path, found.base, target, dtype=dtype, onto=onto, loaded_as=found.recipe.model)
        hashes = {"merged": model_hash(merged), **model_hashes(found.path, found.base, found.recipe.model)}
        write_json(merged / MERGE, {"dtype": dtype, "onto": onto, "sha256": hashes})
    return merged
