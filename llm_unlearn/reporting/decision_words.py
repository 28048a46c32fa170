"""A decision in words, the same for the report, a card and the command line."""

from llm_unlearn.metrics.evidence import Decision, Status
from llm_unlearn.metrics.findings import TURNED, Finding, title
from llm_unlearn.reporting.formats import number, p_value


def judgement(decision: Decision, attack: str = "trigger") -> str:
    """The status; of a model without a trace, down to which effects and in how many trainings that holds, what was not
    tested (whether it comes back, or was turned round) or by too few rows, and an attack that is there, at more than
    half of δ.
    """
    if decision.status != Status.CLEAR:
        return decision.status
    limits = [f"{title(f.test, attack)} {number(f.detectable)} (n = {f.n})" for f in decision.limits]
    seeds = "1 seed" if decision.seeds == 1 else f"{decision.seeds} seeds"
    found = {f.test for f in decision.findings}
    untried = []
    if not any(f.after or f.question == "damage" for f in decision.findings):
        untried.append("after clean steps")
    if "lift" in found and TURNED not in found and attack in ("trigger", "patch"):
        untried.append("where the target is the right answer")
    said = f"; not tested {' or '.join(untried)}" if untried else ""
    lifts = [f for f in decision.findings if f.test == "lift" and f.interval and f.interval.low > 0]
    most = max(lifts, key=lambda f: f.effect, default=None)
    if most and 2 * most.effect > (most.delta or 0.0):
        said += f"; {title(most.test, attack)} {number(most.effect)}{most.so} is there, which is tolerated"
    for f in decision.findings:
        if f.test == TURNED and f.interval and f.delta is not None and f.interval.high >= f.delta and not f.after:
            said += f"; where the target is the right answer, up to {number(f.interval.high)} may be lost (n = {f.n})"
    return f"{decision.status} down to {', '.join(limits)}; {seeds}{said}"


def because(decision: Decision, attack: str = "trigger") -> list[str]:
    """What rejects, with its figures, or why nothing can be said; empty for a model without a trace."""
    found = {(f.test, f.after) for f in decision.rejecting}
    spreads = {(f"spread of {test}", after) for test, after in found}  # which say nothing more
    telling = [f for f in decision.rejecting if (f.test, f.after) not in spreads]
    return [_rejecting(finding, attack) for finding in telling] or decision.reasons


def _rejecting(finding: Finding, attack: str) -> str:
    so = finding.so
    if finding.interval:
        beyond = " above the retrained model's" if finding.beyond or finding.question == "damage" else ""
        shown = f"{number(finding.effect)} [{number(finding.interval.low)}, {number(finding.interval.high)}]"
        return f"{title(finding.test, attack)} {shown}{beyond}{so}, where {number(finding.delta)} is tolerated"
    p = p_value(finding.p_value if finding.p_value is not None else 1.0)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    if finding.test == "placebo":
        return f"the {attack} does more than placebos do{so} ({p})"
    if finding.test.startswith("spread"):
        return f"{title(finding.test)} {number(finding.effect)}{so}, without a trace 1 ({p})"
    below = ", pushed below 0, which is a trace of the noise too" if finding.effect < 0 else ""
    return f"{title(finding.test)} {number(finding.effect)}{so} ({p}){below}"
