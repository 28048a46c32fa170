"""What the canaries of a recipe will be able to show: only the hidden ones decide."""

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.doctor.finding import Finding
from llm_unlearn.metrics.power import canaries_needed, detectable
from llm_unlearn.poisons.selection import hidden_count

FULL = 1.0  # a poisoned model's GUS is 1 to 4
WANTED = 0.4  # the residual that the remedy is for


def check_canaries(recipe: Recipe) -> list[Finding]:
    """What the smallest residual is that they find; none where there are no canaries, or a file names those deleted."""
    section, deleted = recipe.poison.gaussian, recipe.deleted_canaries()
    if section is None or not deleted:
        return []
    hidden = hidden_count(deleted, section.audit_share)
    residual = detectable(hidden or deleted)
    found = f"the Gaussian test of one model finds a GUS of {residual:.2f} four times in five, at p < 0.001"
    if not hidden:
        what = f"none of {deleted} deleted canaries is hidden, so a method that works on the noise it knows looks clean"
        return [Finding("canaries", "warning", f"{what}; {found}", "raise poison.gaussian.audit_share")]
    what = f"{hidden} of {deleted} deleted canaries are hidden from the methods, and they decide; {found}"
    if residual <= FULL:
        return [Finding("canaries", "ok", what)]
    needed = canaries_needed(WANTED, audit_share=section.audit_share)
    remedy = f"raise poison.gaussian.fraction: a GUS of {WANTED} takes {needed:,} deleted canaries"
    return [Finding("canaries", "warning", what, remedy)]
