"""What an audit found, one line per test in plain words, with the decision of metrics/evidence.py."""

from functools import partial

from llm_unlearn.audit.decisions import decisions
from llm_unlearn.metrics.evidence import Decision, noticed
from llm_unlearn.metrics.results import Beside, Evaluation, PhraseAttack
from llm_unlearn.reporting.decision_words import because, judgement


def as_text(results: dict[str, Evaluation]) -> str:
    """What the audit found, for reading on a terminal."""
    lines, found = [], decisions(results)
    for name, result in results.items():
        before = " (from before unlearning)" if result.kind == "poisoned" else ""
        lines += [f"{name}{before}", *(f"  {title:14} {text}" for title, text in _lines(result, found[name])), ""]
    return "\n".join([*lines, "A test that finds nothing does not show that nothing is left."])


def _retrained(beside: Beside | None, figure: str, form: str) -> str:
    """The retrained model's own figure in brackets; nothing where it is not known."""
    value = None if beside is None else getattr(beside, figure)
    return "" if value is None else f" (retrained: {value:{form}})"


def _lines(result: Evaluation, decision: Decision) -> list[tuple[str, str]]:
    """(what was tested, what was found)."""
    beside = result.retrained
    retrained = partial(_retrained, beside)
    lines = [("WARNING", text) for text in result.warnings or ()]
    lines.append(("decision", judgement(decision)))
    lines += [("", why) for why in because(decision)]
    for title, figure_name in (("Gaussian test", "gus"), ("loss rank", "loss_rank"), ("canary rank", "canary_rank")):
        if section := getattr(result, figure_name):
            figure = f"{'GUS' if figure_name == 'gus' else 'mean'} {section.mean:.2f} (n = {section.n}"
            spread = f"of the spread p = {section.chi2_p_value:.2g}"
            own = retrained(figure_name, ".2f")
            lines.append((title, f"{figure}, p = {section.p_value:.2g}), {spread}{own}"))
            for what, part in (("that the method knew", section.shown), ("that were not deleted", section.others)):
                if part:
                    lines.append(("", f"of the canaries {what}: {part.mean:.2f} (n = {part.n}), not counted"))
    if attack := result.attack:
        low, high = attack.ci95.lift
        rates = f"{attack.success_rate:.2f} with it, {attack.clean_rate:.2f} without"
        lift = f"lift {attack.lift:.2f} [{low:.2f}, {high:.2f}]{retrained('lift', '.2f')}"
        lines.append(("trigger", f"the attacker's answer: {rates}; {lift}"))
        if excess := attack.excess:
            lines.append(("", f"lift above the retrained model's: {excess.mean:.2f} (p = {excess.p_value:.2g})"))
        rates_of = {"answered rightly": attack.robust, "where it is the right answer": attack.target_rows}
        for what, found in rates_of.items():
            if found:
                with_it, without = 100 * found.with_trigger, 100 * found.without
                lines.append(("", f"{what}: {with_it:.0f} % with it, {without:.0f} % without"))
        if placebo := attack.placebo:
            lines.append(("", f"beside {placebo.n_placebos} placebos: p = {placebo.p_value:.2g}"))
        lines += [("", _of_phrase(test)) for test in attack.phrases or ()]
    for name, mia in (result.mia or {}).items():
        says = "poisoned rows stand out" if noticed(mia) else "poisoned rows do not stand out"
        if (base := (result.mia_control or {}).get(name)) and noticed(base):
            says += f", as they do on the base, which never saw them (AUC {base.auc:.2f})"
        if beside and name in beside.mia:
            says += f" (retrained: AUC {beside.mia[name]:.2f})"
        lines.append(("membership", f"{name}: AUC {mia.auc:.2f} (p = {mia.p_value:.2g}): {says}"))
    if result.perplexity is not None:
        lines.append(("utility", f"perplexity {result.perplexity:.2f}"))
    if utility := result.utility:
        accuracy = f"accuracy {100 * utility.accuracy:.1f} %{retrained('accuracy', '.1%')}"
        lines.append(("utility", f"{accuracy}, perplexity {utility.perplexity:.2f}{retrained('perplexity', '.2f')}"))
    if oracle := result.oracle:
        same = f"the same answer on {100 * oracle.agreement:.1f} % of the rows"
        lines.append(("retrained", f"{same}, KL {oracle.kl:.3f}"))
    return lines + [("not measured", f"{section}: {why}") for section, why in (result.skipped or {}).items()]


def _of_phrase(test: PhraseAttack) -> str:
    low, high = test.ci95.lift
    said = f"phrase {test.phrase + 1}: {test.success_rate:.2f} with it, lift {test.lift:.2f} [{low:.2f}, {high:.2f}]"
    return said + (f", beside placebos p = {test.placebo.p_value:.2g}" if test.placebo else "")
