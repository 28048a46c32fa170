"""Whether what goes up of a run is what its card speaks of: the weights that were measured."""

from llm_unlearn.errors import InputError
from llm_unlearn.runs.model_hashes import result_hashes
from llm_unlearn.runs.run_folder import RunModel
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
