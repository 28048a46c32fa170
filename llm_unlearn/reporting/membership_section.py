"""What membership inference sees of each model, beside the Gaussian score: the paper's point, in a table."""

from llm_unlearn.reporting.formats import p_range
from llm_unlearn.reporting.results import Results
from llm_unlearn.reporting.run_summary import Statistic
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.tables import TPR, Cell, Table, statistic_cell
from llm_unlearn.reporting.verdicts import ALPHA, values

NAMES = {
    "loss": "loss",
    "zlib": "zlib",
    "reference": "reference",
    "min_k": "min-k %",
    "min_k_plus": "min-k %++",
    "gradient_norm": "gradient norm",
}
_NOTE = (
    "Each attack scores how much a row looks like one that was trained on; its AUC is how well that tells the forget "
    "set from held-out rows that went through the same poison (0.5: not at all). The last column is the best of the "
    "attacks at 1 % false positives. The Gaussian test stands beside them: it asks whether the poison is still in the "
    "model, they ask whether the rows are still remembered. "
)


def attacks(results: Results) -> list[str]:
    """The membership attacks that any model was put to, in the order of NAMES."""
    found = {name for run in results.runs for doc in run.models.values() for name in (doc.get("mia") or {})}
    return [name for name in NAMES if name in found]


def membership_section(results: Results) -> Section | None:
    """The table of AUCs beside GUS, and a sentence on what the attacks miss; None with the loss attack alone."""
    names = attacks(results)
    if len(names) < 2:
        return None
    has_gus = results.has("gus")
    columns = [("GUS", "Gaussian test"), ("p", "Gaussian test"), (TPR, "Gaussian test")] * has_gus
    columns += [(NAMES[name], "Membership attacks, AUC") for name in names] + [(TPR, "best attack")]
    rows = []
    for model in results.names:
        cells = [
            _mean(values(results, model, "gus", "mean")),
            Cell(p_range(values(results, model, "gus", "p_value"))),
            _mean(values(results, model, "gus", "tpr_at_fpr", "0.01")),
        ] * has_gus
        cells += [_mean(values(results, model, "mia", name, "auc")) for name in names]
        best = [
            max(doc["mia"][name]["tpr_at_fpr"]["0.01"] for name in names if name in doc["mia"])
            for doc in results.docs(model)
            if doc.get("mia")
        ]
        rows.append((model, [*cells, _mean(best)]))
    return Section("What membership inference sees", _NOTE + _missed(results, names), [Table(columns, rows)])


def _missed(results: Results, names: list[str]) -> str:
    """Which unlearned models the Gaussian test convicts while no membership attack notices anything."""
    if not results.has("gus"):
        return ""
    convicted, missed = [], []
    for model in results.methods:
        gaussian = values(results, model, "gus", "p_value")
        found = [p for name in names for p in values(results, model, "mia", name, "p_value")]
        if gaussian and max(gaussian) < ALPHA:
            convicted.append(model)
            missed += [model] if found and min(found) >= ALPHA else []
    if not convicted:
        return f"The Gaussian test finds the poison in every seed (p < {ALPHA:g}) on none of the unlearned models."
    count = f"{len(convicted)} unlearned model{'s' * (len(convicted) > 1)}"
    rule = (
        f"Of {count} on which the Gaussian test finds the poison in every seed (p < "
        f"{ALPHA:g}), {len(missed)} pass all {len(names)} membership attacks in every seed (Mann–Whitney p ≥ "
        f"{ALPHA:g})"
    )
    return f"{rule}: {', '.join(missed)}." if missed else f"{rule}."


def _mean(found: list[float]) -> Cell:
    return statistic_cell(Statistic(tuple(found)) if found else None)
