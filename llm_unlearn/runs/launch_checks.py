"""What a recipe cannot do under an accelerate config, found before anything is launched."""

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.topology import Topology, read_topology
from llm_unlearn.errors import InputError
from llm_unlearn.runs.tracks import track_of


def check_topology(recipe: Recipe, path: str) -> Topology:
    """Read an accelerate config and refuse what a recipe cannot do under it, before anything is launched.

    Raises:
        InputError: naming the file or the field: several machines, a method that the engine cannot run, rows of a step
            that cannot be shared evenly.
    """
    from llm_unlearn.config.sweep import points
    from llm_unlearn.trainers import METHODS

    topology = read_topology(path)
    if topology.machines > 1:
        raise InputError(
            f"{path}: num_machines: {topology.machines}; a launch over several machines is started on each "
            "of them: see scripts/slurm.sh"
        )
    track_of(recipe).check_topology(recipe, topology, path)
    for part in (recipe, *(point.recipe for point in points(recipe))):
        for method in part.unlearn.methods:
            if topology.engine and (reason := METHODS[method][0].refuses.get(topology.engine)):
                raise InputError(
                    f"recipe.unlearn.methods.{method}: {reason}; leave it out, or take accelerate_configs/ddp.yaml"
                )
        for section in ("train", "unlearn"):
            topology.rows_per_device(getattr(part, section).batch_size, f"recipe.{section}.batch_size")
    return topology
