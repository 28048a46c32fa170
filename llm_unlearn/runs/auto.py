"""What commands make of a search: `unlearn --method auto` a verdict on its choice, `tune` the options of methods."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.halves import judged_choices, looked_before
from llm_unlearn.files import write_json, write_text
from llm_unlearn.runs.candidates import AUTO_BUDGETS, Candidate
from llm_unlearn.runs.phases import stages_until
from llm_unlearn.runs.pipeline import run
from llm_unlearn.runs.search import TABLE, Search, search
from llm_unlearn.runs.search_text import as_text
from llm_unlearn.runs.stages import Stages
from llm_unlearn.runs.work import seed_runs

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import GivenRecipe
    from llm_unlearn.config.search_fields import SearchSection

logger = logging.getLogger(__name__)

TEXT = "search.txt"


def auto(
    recipe: "GivenRecipe", section: "SearchSection", *, quiet: bool = False, trainers: dict[str, Any] | None = None
) -> Search:
    """Search for a candidate that passes on the tuning half, and judge the first on the other half, once: the run
    directory is then as after `run` with that method, its figures those of the verdict half.

    Args:
        recipe: of the given model, without methods.
        section: what the user said of the search.
        quiet: no progress bars.
        trainers: gets the trainer of the candidate that passed, where it was made now.

    Returns:
        the search; where nothing `passed`, there is no model and no verdict.

    Raises:
        InputError: see `search`.
    """
    found = search(recipe, section, first=True, max_budget=AUTO_BUDGETS, quiet=quiet, trainers=trainers)
    if point := found.passed:
        final = Candidate(point.method, point.options).on(recipe)
        final = final.changed(given=recipe.given.changed(half="verdict"))
        run(final, until="train", quiet=quiet, jobs=1)
        (seed_run,) = seed_runs(final)
        made = next(s for s in stages_until(seed_run, "unlearn") if s.name == f"unlearned/{point.method}")
        Stages(seed_run.folder).adopt(made, [found.run.folder])
        run(final, quiet=quiet, jobs=1)
        found.judged = len(judged_choices(seed_run.folder))
        write_json(found.run.folder / TABLE, found.to_json())
        for text in looked_before(found.judged):
            logger.warning("%s", text)
    write_text(found.run.folder / TEXT, as_text(found))
    return found


def tune(recipe: "GivenRecipe", section: "SearchSection", *, quiet: bool = False) -> Search:
    """Measure every candidate on the tuning half; no model is kept.

    Args:
        recipe: of the given model; its methods are searched over rates, unless the section names candidates.
        section: what the user said of the search.
        quiet: no progress bars.

    Raises:
        InputError: see `search`.
    """
    found = search(recipe, section, first=False, quiet=quiet)
    write_text(found.run.folder / TEXT, as_text(found))
    return found


def table_of(folder: Path) -> Path:
    """Where the text of a search in a run directory is."""
    return folder / "search" / TEXT
