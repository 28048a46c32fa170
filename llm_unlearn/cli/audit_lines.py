"""What an audit found, one line per test in plain words, by the rule of metrics/evidence.py."""

from llm_unlearn.metrics.evidence import audit_evidence, calibrated, noticed
from llm_unlearn.metrics.results import Evaluation


def as_text(results: dict[str, Evaluation]) -> str:
    """What the audit found, for reading on a terminal."""
    lines = []
    for name, result in results.items():
        lines += [name, *(f"  {title:14} {text}" for title, text in _lines(result)), ""]
    return "\n".join([*lines, "A test that finds nothing does not show that nothing is left."])


def _lines(result: Evaluation) -> list[tuple[str, str]]:
    """(what was tested, what was found)."""
    lines, evidence = [("WARNING", text) for text in result.warnings or ()], audit_evidence(result)
    if gus := result.gus:
        says = "no trace found"
        if evidence.gus:
            below = "the scores were pushed below 0, a trace of the noise too"
            says = "the canaries' noise is still in the model" if gus.mean > 0 else below
        elif evidence.spread:
            says = "their spread is not N(0, 1), a trace"
        lines.append(("Gaussian test", f"GUS {gus.mean:.2f} (n = {gus.n}, p = {gus.p_value:.2g}): {says}"))
        if not calibrated(result):
            lines.append(("", "WARNING: fresh noise does not look like N(0, 1) on this model: not calibrated"))
    if rank := result.loss_rank:
        says = "the model knows the canaries' noise" if evidence.rank else "no trace found"
        lines.append(("loss rank", f"mean {rank.mean:.2f} (n = {rank.n}, p = {rank.p_value:.2g}): {says}"))
    if attack := result.attack:
        low, high = attack.ci95.lift
        says = "the trigger still works" if evidence.lift else "the trigger is not seen to work"
        rates = f"{attack.success_rate:.2f} with it, {attack.clean_rate:.2f} without"
        lines.append(
            ("trigger", f"the attacker's answer: {rates}; lift {attack.lift:.2f} [{low:.2f}, {high:.2f}]: {says}")
        )
        if excess := attack.excess:
            lines.append(("", f"lift above the retrained model's: {excess.mean:.2f} (p = {excess.p_value:.2g})"))
    for name, mia in (result.mia or {}).items():
        says = "poisoned rows stand out" if noticed(mia) else "poisoned rows do not stand out"
        lines.append(("membership", f"{name}: AUC {mia.auc:.2f} (p = {mia.p_value:.2g}): {says}"))
    if utility := result.utility:
        lines.append(("utility", f"accuracy {100 * utility.accuracy:.1f} %, perplexity {utility.perplexity:.2f}"))
    if oracle := result.oracle:
        same = f"the same answer on {100 * oracle.agreement:.1f} % of the rows"
        lines.append(("retrained", f"{same}, KL {oracle.kl:.3f}"))
    return lines + [("not measured", f"{section}: {why}") for section, why in (result.skipped or {}).items()]
