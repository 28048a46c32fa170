"""Whether what goes up of a run is what its card speaks of: the weights, and what they were merged from."""

from pathlib import Path

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.runs.model_hashes import model_hash, result_hashes
from llm_unlearn.runs.run_folder import MERGE, RunModel
from llm_unlearn.runs.stages import Stages

CHANGED = {"result": "this file", "poison": "poison.json", "model": "the model", "base": "its base"}  # by result_hashes


def check_measured(source: RunModel, names: list[str]) -> None:
    """Refuse results that were measured on another model, base or poison than lie there now, or nobody knows on what.

    Args:
        source: the model that is published.
        names: the models whose results go up; those beside the published one may be gone.

    Raises:
        InputError: naming the result and the remedy.
    """
    for kind, command in (("evaluation", "evaluate"), ("stress", "stress")):
        for name in names:
            folder = source.path if name == source.name else source.folder / name
            result = source.folder / kind / f"{name}.json"
            if not result.is_file() or not folder.is_dir():
                continue
            before = Stages(source.folder).hashes(f"{kind}/{name}")
            now = result_hashes(result, folder, source.base, source.recipe.model)
            changed = [words for key, words in CHANGED.items() if key in now and now[key] != before.get(key)]
            if changed:
                what = f"{', '.join(changed)} changed since" if before else "nothing says on which weights"
                remedy = f"delete {result.parent}, and run `llm-unlearn {command} {source.root / 'recipe.yaml'}` again"
                raise InputError(f"{result}: {what} it was measured; {remedy}")


def merge_of(source: RunModel) -> tuple[Path, str]:
    """What `merge` wrote of a model.

    Args:
        source: the model, whose evaluation was checked.

    Returns:
        the folder and the type of its weights.

    Raises:
        InputError: there is none, or it is no merge of the adapter and the base that were evaluated.
    """
    folder = source.folder / "merged" / source.name
    seed = f" --seed {source.seed}" * (source.folder != source.root)
    again = f"llm-unlearn merge {source.root} --model {source.name}{seed}"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it: {again}")
    remedy = f"delete {folder}, and merge again: {again}"
    record = read_json(folder / MERGE, remedy) if (folder / MERGE).is_file() else {}
    evaluated, hashes = Stages(source.folder).hashes(f"evaluation/{source.name}"), record.get("sha256") or {}
    if not hashes:
        why = "nothing says what it was merged from"
    elif hashes.get("merged") != model_hash(folder):
        why = "it changed since it was merged"
    elif any(hashes.get(key) != evaluated.get(key) for key in ("model", "base")):
        why = "it was merged from another adapter or base than was evaluated"
    elif record["onto"] == "original" and (bits := source.recipe.model.quantization) != "none":
        why = f"it is merged onto the original weights; what was evaluated is the adapter on the base in {bits}"
    else:
        return folder, record["dtype"]
    raise InputError(f"{folder}: {why}; {remedy}")
