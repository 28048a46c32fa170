"""What a search tries: methods with their options, in the order of their cost."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.config.recipe import GivenRecipe
    from llm_unlearn.config.search_fields import SearchSection

# Of `auto`, by the passes that a step takes: retained rows alone, rows to be forgotten beside them, a reference beside
# both. All get the same compute. `rewind` holds nothing of the poison by construction, so it is the one to beat.
AUTO: dict[str, dict[str, Any]] = {
    "rewind": {"completion_weight": 1.0},
    "gradient_descent": {},
    "grad_diff": {},
    "npo": {},
}
AUTO_RATES = (0.3, 1.0, 3.0)
AUTO_BUDGETS = 12.0  # every one of those
TUNE_RATES = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Candidate:
    """A method with its options, as a recipe's `unlearn.methods` has them."""

    method: str
    options: dict[str, Any]

    def __str__(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.method} ({options})" if options else self.method

    def on(self, recipe: "GivenRecipe") -> "GivenRecipe":
        """The recipe that runs this candidate alone."""
        return recipe.changed(unlearn=recipe.unlearn.changed(methods={self.method: self.options}))


def candidates_of(recipe: "GivenRecipe", section: "SearchSection", has_base: bool) -> list[Candidate]:
    """Those that the user names, or else each method of the recipe (or, if it has none, of AUTO) at each rate.

    Args:
        recipe: whose methods and learning rates are read.
        section: what the user said of the search.
        has_base: whether methods that begin before the fine-tuning can run.
    """
    from llm_unlearn.trainers import METHODS

    if section.candidates is not None:
        return [Candidate(m, dict(options or {})) for each in section.candidates for m, options in each.items()]
    methods = recipe.unlearn.methods or {
        method: options for method, options in AUTO.items() if has_base or not METHODS[method][1].starts_clean
    }
    rates = section.rates or (TUNE_RATES if recipe.unlearn.methods else AUTO_RATES)
    return [
        candidate
        for method, options in methods.items()
        for candidate in _at_rates(Candidate(method, dict(options or {})), recipe, rates)
    ]


def _at_rates(candidate: Candidate, recipe: "GivenRecipe", rates: Any) -> list[Candidate]:
    """A candidate at multiples of its learning rate, the mildest first."""
    from llm_unlearn.runs.method_configs import method_config
    from llm_unlearn.trainers import METHODS

    if candidate.method not in METHODS:
        return [candidate]  # which the check refuses
    config = method_config(candidate.on(recipe), candidate.method, 0, "unused", max_flops=1.0, quiet=True)
    if not config.learning_rate:
        raise InputError(f"{candidate.method}: takes no learning rate, so there is none to search; name candidates")
    return [
        Candidate(candidate.method, {**candidate.options, "learning_rate": float(f"{config.learning_rate * rate:.3g}")})
        for rate in sorted(rates)
    ]
