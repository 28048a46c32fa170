"""What an audit found, one line per test in plain words."""

from typing import Any

ALPHA = 0.001  # level of a finding, as in the report


def as_text(results: dict[str, dict]) -> str:
    """What the audit found, for reading on a terminal."""
    lines = []
    for name, result in results.items():
        lines += [name, *(f"  {title:14} {text}" for title, text in _lines(result)), ""]
    return "\n".join([*lines, "A test that finds nothing does not show that nothing is left."])


def _lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """(what was tested, what was found)."""
    lines = []
    if gus := result["gus"]:
        lines.append(("Gaussian test", _gaussian(gus)))
        control = gus["control"]
        if min(control["p_value"], control["chi2_p_value"]) < ALPHA:
            lines.append(("", "WARNING: fresh noise does not look like N(0, 1) on this model: not calibrated"))
    if attack := result["attack"]:
        low, high = attack["ci95"]["lift"]
        says = "the trigger still works" if low > 0 else "the trigger is not seen to work"
        lines.append(
            (
                "trigger",
                f"the attacker's answer: {attack['success_rate']:.2f} with it, "
                f"{attack['clean_rate']:.2f} without; lift {attack['lift']:.2f} [{low:.2f}, {high:.2f}]: {says}",
            )
        )
        if excess := attack["excess"]:
            lines.append(("", f"lift above the retrained model's: {excess['mean']:.2f} (p = {excess['p_value']:.2g})"))
    for attack_name, mia in (result["mia"] or {}).items():
        says = "poisoned rows stand out" if mia["p_value"] < ALPHA else "poisoned rows do not stand out"
        lines.append(("membership", f"{attack_name}: AUC {mia['auc']:.2f} (p = {mia['p_value']:.2g}): {says}"))
    if utility := result["utility"]:
        lines.append(("utility", f"accuracy {100 * utility['accuracy']:.1f} %, perplexity {utility['perplexity']:.2f}"))
    if oracle := result["oracle"]:
        lines.append(
            ("retrained", f"the same answer on {100 * oracle['agreement']:.1f} % of the rows, KL {oracle['kl']:.3f}")
        )
    return lines + [("not measured", f"{section}: {why}") for section, why in result["skipped"].items()]


def _gaussian(gus: dict[str, Any]) -> str:
    says = "no trace found"
    if gus["p_value"] < ALPHA:
        says = (
            "the canaries' noise is still in the model"
            if gus["mean"] > 0
            else "the scores were pushed below 0, a trace of the noise too"
        )
    elif gus["chi2_p_value"] < ALPHA:
        says = "their spread is not N(0, 1), a trace"
    return f"GUS {gus['mean']:.2f} (n = {gus['n']}, p = {gus['p_value']:.2g}): {says}"
