"""What membership inference sees of each model, beside the Gaussian score: the paper's point, in a table."""

from llm_unlearn.metrics.defects import RARE
from llm_unlearn.metrics.evidence import noticed
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.contents import Section
from llm_unlearn.reporting.formats import p_range
from llm_unlearn.reporting.run_results import Results, statistic
from llm_unlearn.reporting.tables import TPR, Cell, Table, statistic_cell

NAMES = {
    "loss": "loss",
    "zlib": "zlib",
    "reference": "reference",
    "min_k": "min-k %",
    "min_k_plus": "min-k %++",
    "gradient_norm": "gradient norm",
    "lowercase": "PPL/lower",
}
_NOTE = (
    "AUC: how well an attack tells the forget set from held-out rows with the same poison (0.5: not at all). The "
    "Gaussian test asks whether the poison is still in the model, the attacks whether the rows are remembered: where "
    f"the first has a small p and no attack notices anything (Mann–Whitney p < {RARE:g} in any seed), membership "
    "inference misses it."
)


def attacks(results: Results) -> list[str]:
    """The membership attacks that any model was put to, in the order of NAMES."""
    tried = {name for run in results.runs for result in run.models.values() for name in result.mia or {}}
    return [name for name in NAMES if name in tried]


def membership_section(results: Results) -> Section | None:
    """The table of AUCs beside GUS, and how many attacks notice anything; None with the loss attack alone."""
    names = attacks(results)
    if len(names) < 2:
        return None
    columns = [(title, "Gaussian test") for title in ("GUS", "p", TPR)] if results.has_gus else []
    columns += [(NAMES[name], "Membership attacks, AUC") for name in names]
    columns += [(TPR, "best attack"), ("that notice", "attacks")]
    rows = [(model, _cells(results, model, names)) for model in results.names]
    return Section("What membership inference sees", _NOTE, [Table(columns, rows)])


def _cells(results: Results, model: str, names: list[str]) -> list[Cell]:
    cells = []
    if results.has_gus:
        cells = [
            statistic_cell(results.over_seeds(model, figures.gus)),
            Cell(p_range(results.over_seeds(model, figures.gus_p))),
            statistic_cell(results.over_seeds(model, figures.gus_tpr)),
        ]
    cells += [statistic_cell(results.over_seeds(model, figures.auc(name)), ranged=True) for name in names]
    tested = [r.mia for r in results.of(model) if r.mia]
    rates = [max(test.tpr_at_fpr[figures.ONE_PERCENT_FPR] for test in mia.values()) for mia in tested]
    answers = [[noticed(mia[name]) for mia in tested if name in mia] for name in names]
    known = [any(seeds) for seeds in answers if any(answer is not None for answer in seeds)]
    return [*cells, statistic_cell(statistic(rates)), Cell(f"{sum(known)}/{len(known)}" if known else "–")]
