"""What a search for a method and its options may be told: `--method auto` and `tune`."""

from typing import Annotated, Any

from pydantic import Field

from llm_unlearn.config.fields import Distinct, NotNegative, Positive, Section, Table, require


class SearchSection(Section):
    """Which candidates are tried, for how much compute, and how much utility one may cost."""

    candidates: Annotated[list[Table[Table[Any] | None]], Field(min_length=1)] | None = None
    """method → options, each as in a recipe's `unlearn.methods`, in the order in which they are tried; null: the
    command's own"""
    rates: Annotated[Distinct[Positive], Field(min_length=1)] | None = None
    """multiples of the learning rate that each method would take; null: the command's own"""
    max_budget: Positive | None = None
    """compute of all candidates together, in budgets of one; null: the command's own"""
    points_lost: NotNegative = 2.0
    """of accuracy below the poisoned model's, in percentage points, that a candidate may cost"""
    perplexity_factor: Annotated[float, Field(ge=1, le=1000)] = 1.1
    """of the poisoned model's perplexity that a candidate may reach where the test rows have no labels"""

    def check_rules(self) -> None:
        for candidate in self.candidates or ():
            require(len(candidate) == 1, "candidates", "each is one method with its options, e.g. {npo: {beta: 0.1}}")
        require(not (self.candidates and self.rates), "rates", "the candidates say their rates; leave one of them out")
