"""The stage that comes before all others: a small base made for a recipe that names none."""

from contextlib import nullcontext
from pathlib import Path

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.models.load import check_base
from llm_unlearn.runs.folder_lock import locked_folder
from llm_unlearn.runs.seed_run import made_by_run
from llm_unlearn.runs.stages import Stage, Stages
from llm_unlearn.training.pretraining import base_folder, base_inputs, pretrain_base


def make_base(recipe: Recipe, quiet: bool) -> Path:
    """Make the base of a recipe, or find it made before; it stays in `pretrain.cache_dir` or the run directory."""
    folder = base_folder(recipe)

    def work(work_dir: Path) -> None:
        pretrain_base(recipe, folder, work_dir, quiet)

    stage = Stage("base", base_inputs(recipe), [folder / "cost.json"], work, common=True, is_shared=True)
    processes = Processes.current()
    # other runs may share it
    with locked_folder(folder.parent, wait=True) if processes.is_main else nullcontext():
        Stages(folder.parent, processes).run(stage)
    with made_by_run(folder):
        check_base(recipe.model.changed(path=str(folder)), {"data.max_length": recipe.data.max_length})
    return folder
