"""A search for a method and its options on a model that is poisoned already, with an honest split.

Test rows and deciding canaries are halved (audit/halves.py). Candidates are made and judged one after the other in
`search/`, a run directory that measures the tuning half alone; the other half is for the verdict on the chosen one.
"""

import logging
import math
import shutil
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.halves import Half, note_choice
from llm_unlearn.audit.subject import read_subject
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import DiskFullError, InputError
from llm_unlearn.files import read_json, write_json
from llm_unlearn.metrics.evidence import decide, is_promising
from llm_unlearn.metrics.findings import ROUNDING
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.reporting.decision_words import because, judgement
from llm_unlearn.runs.candidates import Candidate, candidates_of
from llm_unlearn.runs.folder_lock import locked_folder
from llm_unlearn.runs.given_run import GivenRun
from llm_unlearn.runs.phases import stages_until
from llm_unlearn.runs.pipeline import check, run
from llm_unlearn.runs.points import Figures, Point, best, figures_of, residual
from llm_unlearn.runs.stages import Stages
from llm_unlearn.runs.work import seed_runs

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import GivenRecipe
    from llm_unlearn.config.search_fields import SearchSection

logger = logging.getLogger(__name__)

FOLDER, TABLE = "search", "search.json"
NEVER_RIGHT = 5.0  # % of answers: below, as of long ones that are generated, accuracy does not show what is lost


@dataclass
class Search:
    """What a search knows.

    Args:
        recipe: of the tuning half.
        section: what the user said of it.
        max_budget: compute of all candidates together, in budgets of one.
        run: the seed that is measured.
        poisoned: its evaluation on the tuning half.
        retrained: likewise, where there is one.
        points: one for each candidate that was tried, in their order.
        earlier: those of earlier calls that this one does not ask for.
        judged: how many choices verdict halves have judged in this run directory, this one included.
    """

    recipe: "GivenRecipe"
    section: "SearchSection"
    max_budget: float
    run: GivenRun
    poisoned: Evaluation
    retrained: Evaluation | None
    points: list[Point] = field(default_factory=list)
    earlier: list[Point] = field(default_factory=list)
    judged: int = 0

    @property
    def spent(self) -> float:
        """Budgets of one candidate that were spent so far."""
        return sum(point.spent for point in self.points)

    @property
    def passed(self) -> Point | None:
        """The first that passes."""
        return next((point for point in self.points if point.passes), None)

    @property
    def best(self) -> Point | None:
        return best(self.points)

    @property
    def before(self) -> Figures:
        """The poisoned model's figures."""
        return figures_of(self.poisoned)

    @property
    def poison(self) -> Figures:
        """Those of them that show its poison: a score that does not find it there is noise."""
        took, attack = decide([self.poisoned]).tests_took, ("lift", "placebo")
        found_by = {"lift": attack, "gus": ("gus",), "loss_rank": ("loss rank",), "canary_rank": ("canary rank",)}
        telling = {name for name, tests in found_by.items() if took.intersection(tests)}
        return {name: value if name in telling else None for name, value in self.before.items()}

    def to_json(self) -> dict[str, Any]:
        """As search/search.json has it."""
        known = read_json(self.run.folder / "given" / "poisoned.json")
        return {
            "half_seed": self.recipe.given.half_seed,
            "budget": self.recipe.unlearn.budgets[0],
            "budget_in": self.recipe.unlearn.budget_in,
            "max_budget": self.max_budget,
            "spent": self.spent,
            "points_lost": self.section.points_lost,
            "perplexity_factor": self.section.perplexity_factor,
            "poisoned": _finite(self.before),
            "retrained": _finite(figures_of(self.retrained)) if self.retrained else None,
            "points": [_point_json(point) for point in self.points],
            "earlier": [_point_json(point) for point in self.earlier],
            "judged": self.judged,
            "training_flops": known["flops"],
            "retain_pass_flops": known["retain_pass_flops"],
        }


def search(
    recipe: "GivenRecipe",
    section: "SearchSection",
    *,
    first: bool,
    max_budget: float | None = None,
    quiet: bool = False,
    trainers: dict[str, Any] | None = None,
) -> Search:
    """Try candidates on the tuning half; what was tried before with the same inputs is taken from `search.json`.

    Args:
        recipe: of the given model; its methods, or those of `auto` if it has none, are searched.
        section: what the user said of the search.
        first: end at the first that passes, and keep its model.
        max_budget: unless the section says it; None: all candidates are tried.
        quiet: no progress bars.
        trainers: gets the trainer of the last candidate.

    Raises:
        InputError: bad input, or nothing to search by: no test rows, no poison that the tests find in the given model.
    """
    if Processes.start().count > 1:
        raise InputError("a search works in one process; launch what it chose in several")
    candidates = checked_candidates(recipe, section)
    recipe = _of_tuning(recipe)
    plain, folder = recipe.changed(unlearn=recipe.unlearn.changed(methods={})), Path(recipe.output_dir)
    run(plain, until="evaluate", quiet=quiet, jobs=1)
    with locked_folder(folder):
        (seed_run,) = seed_runs(plain, quiet)
        assert isinstance(seed_run, GivenRun)
        seed_run.trainers = trainers
        retrained = _evaluation(seed_run, "retrained") if seed_run.has_oracle else None
        limit = section.max_budget or max_budget or float(len(candidates))
        found = Search(recipe, section, limit, seed_run, _evaluation(seed_run, "poisoned"), retrained)
        _require_signal(found)
        _note_other_halves(found)
        _try_all(found, candidates, first)
    return found


def _of_tuning(recipe: "GivenRecipe") -> "GivenRecipe":
    """The recipe of the run directory that measures the tuning half."""
    given, evaluate = recipe.given.changed(half="tuning"), recipe.evaluate.changed(membership=[], clean_steps=0)
    return recipe.changed(output_dir=str(Path(recipe.output_dir) / FOLDER), given=given, evaluate=evaluate)


def checked_candidates(recipe: "GivenRecipe", section: "SearchSection") -> list[Candidate]:
    """What a search would try, all of it checked before anything runs.

    Raises:
        InputError: a candidate would be refused, or no row would tell one from another.
    """
    if len(recipe.unlearn.budgets) > 1:
        raise InputError("recipe.unlearn.budgets: a search compares candidates at one budget; give one")
    recipe = _of_tuning(recipe)
    (seed_run,) = seed_runs(recipe)
    assert isinstance(seed_run, GivenRun)
    _check_rows(recipe, seed_run.half)
    candidates = candidates_of(recipe, section, seed_run.base is not None)
    by_method: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_method.setdefault(candidate.method, []).append(candidate)
    for some in zip_longest(*by_method.values()):
        methods = {candidate.method: candidate.options for candidate in some if candidate is not None}
        check(recipe.changed(unlearn=recipe.unlearn.changed(methods=methods)))
    return candidates


def _check_rows(recipe: "GivenRecipe", half: Half | None) -> None:
    """Refuse a manifest by whose rows no candidate can be told from another."""
    manifest = recipe.given.manifest
    subject = read_subject(Path(manifest).expanduser(), half=half)
    if not len(subject.sets["test"]):
        raise InputError(
            f"{manifest}.test: a search needs test rows, or nothing says what a candidate costs; give some"
        )
    if {"attack", "gus"} <= subject.missing.keys() and not subject.poison.get("tokens"):
        raise InputError(
            f"{manifest}: nothing tells whether a candidate removes the poison: {subject.missing['attack']}, and "
            f"{subject.missing['gus']}; name a trigger or canaries, or give a method in the place of a search"
        )


def _require_signal(found: Search) -> None:
    """Raise InputError where the tests that are to judge candidates do not find the poison in the given model."""
    if not decide([found.poisoned]).took:
        raise InputError(
            f"{found.recipe.given.manifest}: on the tuning half the tests do not find the poison in the given model "
            "itself, so every candidate would pass; give more test rows or canaries (docs/your-model.md), or name a "
            "method in the place of a search"
        )


def _note_other_halves(found: Search) -> None:
    """A search by another draw of the halves has seen rows that are in this verdict half."""
    path, own = found.run.folder / TABLE, found.recipe.given.half_seed
    if path.is_file() and (other := read_json(path).get("half_seed")) != own:
        note_choice(found.run.folder.parent, {"searched_by_half_seed": other})


def _try_all(found: Search, candidates: list[Candidate], first: bool) -> None:
    path = found.run.folder / TABLE
    known = _known(path, found.section)
    for number, candidate in enumerate(candidates, 1):
        if found.spent + 1 > found.max_budget + ROUNDING:
            logger.info("search: %.3g of %g budgets are spent; no more is tried", found.spent, found.max_budget)
            break
        logger.info("search: candidate %d of %d, %s", number, len(candidates), candidate)
        point = _point(found, candidate, known)
        found.points.append(point)
        found.earlier = [other for other in known.values() if other not in found.points]
        write_json(path, found.to_json())
        logger.info("search: %s: %s", candidate, "passes on the tuning half" if point.passes else point.verdict)
        if first and point.passes:
            break
        if point.key not in known:  # a model that an earlier call made may be of a later candidate
            shutil.rmtree(found.run.folder / "unlearned" / candidate.method, ignore_errors=True)


def _known(path: Path, section: "SearchSection") -> dict[str, Point]:
    """Points of an earlier search by their keys; none where they were judged by other bounds on utility."""
    before = read_json(path) if path.is_file() else {"points": []}
    if any(before.get(name) != getattr(section, name) for name in ("points_lost", "perplexity_factor")):
        return {}
    return {point["key"]: Point(**point) for point in [*before["points"], *before.get("earlier", [])]}


def _point(found: Search, candidate: Candidate, known: dict[str, Point]) -> Point:
    """Make and measure one candidate, unless that was done before."""
    found.run.recipe = candidate.on(found.recipe)
    if found.run.trainers:
        found.run.trainers.clear()  # one model at a time
    made, measured = (
        next(stage for stage in stages_until(found.run, "evaluate") if stage.name == f"{kind}/{candidate.method}")
        for kind in ("unlearned", "evaluation")
    )
    if measured.key in known:
        return known[measured.key]
    try:
        stages = Stages(found.run.folder)
        stages.run(made)
        stages.run(measured)
        return _judged(found, candidate, measured.key)
    except DiskFullError:
        raise
    except InputError as error:  # a loss or weights that are not finite
        return Point(**vars(candidate), key=measured.key, spent=1.0, because=str(error))


def _judged(found: Search, candidate: Candidate, key: str) -> Point:
    """What the tuning half says of a candidate that was made and measured."""
    result, others = _evaluation(found.run, candidate.method), [found.retrained] if found.retrained else []
    decision, figures = decide([result], [found.poisoned], others), figures_of(result)
    within = _keeps_utility(found.before, figures, found.section)
    left = residual(figures, found.poison, figures_of(found.retrained) if found.retrained else None)
    assert result.cost is not None
    limit = found.run.limits(found.recipe.unlearn.budgets[0]).get("max_flops")
    return Point(
        **vars(candidate),
        key=key,
        spent=min(1.0, result.cost.flops / limit) if limit else 1.0,
        flops=result.cost.flops,
        figures=_finite(figures),
        verdict=judgement(decision),
        because="; ".join(because(decision)),
        within=within,
        passes=within and is_promising(decision, [result], [found.poisoned], others),
        residual=left if math.isfinite(left) else None,
    )


def _keeps_utility(before: Figures, figures: Figures, section: "SearchSection") -> bool:
    if figures["accuracy"] is not None and (before["accuracy"] or 0.0) >= NEVER_RIGHT:
        assert before["accuracy"] is not None
        return before["accuracy"] - figures["accuracy"] <= section.points_lost + ROUNDING
    now, then = figures["perplexity"], before["perplexity"]
    return now is not None and then is not None and now <= section.perplexity_factor * then


def _evaluation(seed_run: GivenRun, name: str) -> Evaluation:
    path = seed_run.folder / "evaluation" / f"{name}.json"
    return Evaluation.from_json(read_json(path), str(path))


def _point_json(point: Point) -> dict[str, Any]:
    return {**vars(point), "figures": point.figures and _finite(point.figures)}


def _finite(figures: Figures) -> Figures:
    """Without what JSON cannot hold."""
    return {name: value if value is None or math.isfinite(value) else None for name, value in figures.items()}
