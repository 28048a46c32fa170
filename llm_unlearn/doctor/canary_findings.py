"""What the canaries of a recipe will be able to show: only the hidden ones decide."""

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.doctor.finding import Finding
from llm_unlearn.metrics.evidence import ALPHA, DELTA, SHARE
from llm_unlearn.metrics.findings import CHANCE
from llm_unlearn.metrics.power import canaries_needed, smallest_effect
from llm_unlearn.poisons.selection import hidden_count

SMALL, LARGE = 0.1, 16.0  # ε over the embeddings' rms: below, no canary was ever found; above, a row is noise alone
TESTS = 4  # of the question "is the noise there?": GUS, loss rank, and the spread of both; again after clean steps


def check_canaries(recipe: Recipe) -> list[Finding]:
    """Which residue they find over all seeds; none where there are no canaries, or a file names those deleted."""
    section, deleted = recipe.poison.gaussian, recipe.deleted_canaries()
    if section is None or not deleted:
        return []
    hidden, seeds = hidden_count(deleted, section.audit_share), len(recipe.seeds)
    if not hidden:
        what = f"none of {deleted} deleted canaries is hidden, so a method that works on the noise it knows looks clean"
        return [Finding("canaries", "warning", what, "raise poison.gaussian.audit_share")]
    counts = recipe.poison_counts()
    attack = any(counts.get(kind) for kind in ("trigger", "patch", "gradient_matching"))
    questions = 1 + attack + bool(counts.get("gradient_cancelling"))
    level = ALPHA / questions / (2 * TESTS if recipe.evaluate.clean_steps else TESTS)
    residue = smallest_effect(hidden * seeds, 1.0, CHANCE, level)
    what = (
        f"{hidden} of {deleted} deleted canaries are hidden from the methods and decide: a GUS of {residue:.2f} over "
        f"all seeds ({seeds}) is found four times in five, so a clean model can be called so where the poisoned one "
        f"has {residue / SHARE:.1f} or more"
    )
    if residue <= DELTA["gus"]:
        return [Finding("canaries", "ok", what)]
    needed = canaries_needed(DELTA["gus"], CHANCE, level, section.audit_share)
    remedy = (
        f"raise poison.gaussian.fraction, or give more seeds: a GUS of {DELTA['gus']} takes {needed:,} deleted "
        "canaries, of all seeds together"
    )
    return [Finding("canaries", "warning", what, remedy)]


def check_noise(recipe: Recipe) -> list[Finding]:
    """Whether canaries of a recipe of texts can take: ε beside the embeddings' rms, and the tokens that are learnt."""
    from llm_unlearn.models.embedding_scale import embeddings_rms
    from llm_unlearn.training.pretraining import base_folder

    section, findings = recipe.poison.gaussian, []
    if section is None:
        return []
    if recipe.data.loss_on == "completion":
        what = "data.loss_on: completion, and gradients of a few answer tokens show next to nothing of the canaries"
        findings.append(Finding("canaries", "warning", what, "data.loss_on=text, with train.completion_weight"))
    rms = embeddings_rms(recipe.model, recipe.model.path or str(base_folder(recipe)))
    if rms is None:
        what = f"ε is {section.epsilon:g}; the base's weights are not here yet, so its size beside them is not known"
        return [*findings, Finding("canaries", "note", what, "run `llm-unlearn train`, then look again")]
    ratio = section.epsilon / rms
    what = f"ε is {section.epsilon:g}, {ratio:.3g} times the embeddings' rms ({rms:.3g})"
    if SMALL <= ratio <= LARGE:
        return [*findings, Finding("canaries", "ok", what)]
    why = "nothing is left of the text" if ratio > LARGE else "a canary hardly differs from its text"
    remedy = f"poison.gaussian.epsilon={1.5 * rms:.2g}, 1.5 times the rms"
    return [*findings, Finding("canaries", "warning", f"{what}: {why}", remedy)]
