"""What the canaries of a recipe will be able to show: only the hidden ones decide."""

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.doctor.finding import Finding
from llm_unlearn.metrics.evidence import ALPHA, DELTA, SHARE
from llm_unlearn.metrics.findings import ATTACK_KINDS, CHANCE
from llm_unlearn.metrics.power import canaries_needed, smallest_effect
from llm_unlearn.metrics.ranks import highest_mean
from llm_unlearn.poisons.selection import hidden_count

SMALL, LARGE = 0.1, 16.0  # ε over the embeddings' rms: below, no canary was ever found; above, a row is noise alone
# tests of the question "is the noise there?" by kind: GUS and loss rank, or canary rank, and the spread of each; again
# after clean steps
TESTS = {"gaussian": 4, "tokens": 2}
# what trains of a pretrained model → epochs → the share of the highest mean rank that canaries reached: noise of 1 rms,
# or six words; the least that was seen in docs/canaries.md and recipes/smollm2-* (words in the text, 4 epochs)
REACHED = {
    "adapters": {"gaussian": {1: 0.2, 2: 0.2, 4: 0.8}, "tokens": {1: 0.2, 2: 0.2, 4: 0.5}},
    "all weights": {"gaussian": {1: 0.07, 2: 0.5, 4: 0.9}, "tokens": {1: 0.3, 2: 0.75, 4: 0.95}},
}
TWICE = 0.55  # of adapters, both kinds after one epoch in which each canary stood twice
FEW_STEPS = 70  # of r 8 and 16 nothing was found after 35, and most kinds were after 70
_SCORE = {
    "gaussian": ("canaries", "a GUS or loss rank", "noise"),
    "tokens": ("token canaries", "a mean canary rank", "strings"),
}


def check_canaries(recipe: Recipe) -> list[Finding]:
    """Which residue they find over all seeds; none where there are no canaries, or a file names those deleted."""
    return [finding for kind in TESTS for finding in _check_kind(recipe, kind)]


def _check_kind(recipe: Recipe, kind: str) -> list[Finding]:
    section, deleted = dict(recipe.poison).get(kind), recipe.deleted_canaries(kind)
    if section is None or not deleted:
        return []
    hidden, seeds = hidden_count(deleted, section.audit_share), len(recipe.seeds)
    title, score, planted = _SCORE[kind]
    if not hidden:
        what = (
            f"none of {deleted} deleted {title} is hidden, so a method that works on the {planted} it knows looks clean"
        )
        return [Finding("canaries", "warning", what, f"raise poison.{kind}.audit_share")]
    if not recipe.evaluate.loss_rank_draws:
        what = "no loss rank is taken, and by their GUS alone no canaries are called gone"
        return [Finding("canaries", "warning", what, "set evaluate.loss_rank_draws=99")]
    counts = recipe.poison_counts()
    attack = any(counts.get(kind) for kind in ATTACK_KINDS)
    questions = 1 + attack + bool(counts.get("gradient_cancelling"))
    tests = sum(count for planted_kind, count in TESTS.items() if counts.get(planted_kind))
    level = ALPHA / questions / (2 * tests if recipe.evaluate.clean_steps else tests)
    residue = smallest_effect(hidden * seeds, 1.0, CHANCE, level)
    expected, why = _expected_rank(recipe, kind)
    what = (
        f"{hidden} of {deleted} deleted {title} are hidden from the methods and decide: {score} of {residue:.2f} over "
        f"all seeds ({seeds}) is found four times in five, so a clean model can be called so where the poisoned one "
        f"has {residue / SHARE:.1f} or more; {why}"
    )
    delta = min(DELTA["gus"], SHARE * expected)  # that of each score of the canaries
    if residue <= delta:
        return [Finding("canaries", "ok", what)]
    needed = canaries_needed(delta, CHANCE, level, section.audit_share)
    again = getattr(section, "exposures", 2) == 1 and (recipe.train.epochs or 2) < 2
    remedy = (
        f"{f'set poison.{kind}.exposures=2, ' if again else ''}raise poison.{kind}.fraction, or give more seeds: "
        f"{score} of {delta:.2g} takes {needed:,} deleted canaries, of all seeds together"
    )
    return [Finding("canaries", "warning", what, remedy)]


def _expected_rank(recipe: Recipe, kind: str) -> tuple[float, str]:
    """The mean rank that the poisoned model's canaries may reach, and in words why."""
    draws = recipe.evaluate.loss_rank_draws
    highest = highest_mean(draws)
    words = f"by {draws} draws no mean rank is above {highest:.1f}"
    if not getattr(recipe.model, "path", None):
        return highest, words
    trained = "adapters" if getattr(recipe.model, "lora", None) else "all weights"
    reached = REACHED[trained][kind]
    epochs = max((epochs for epochs in reached if epochs <= recipe.train.epochs), default=min(reached))
    share, shown = reached[epochs], f"{epochs} epoch{'s' * (epochs > 1)}"
    if trained == "adapters" and epochs == 1 and dict(recipe.poison)[kind].exposures > 1:
        share, shown = TWICE, "one epoch with each canary twice"
    return highest * share, (
        f"{words}, and of that {shown} of {trained} of a pretrained model reached {share:.0%} or more "
        "(docs/canaries.md)"
    )


def check_exposures(recipe: Recipe) -> list[Finding]:
    """Whether adapters are trained for long enough, by scripts/canary_study.py on one pretrained model."""
    planted = recipe.poison.gaussian or recipe.poison.tokens
    if not planted or recipe.model.lora is None or (steps := recipe.training_steps()) >= FEW_STEPS:
        return []
    what = (
        f"{steps} steps of adapters: in a study of a pretrained model (docs/canaries.md; LoRA r 8 and 16) no kind of "
        f"canary was found after 35 steps, and most were after {FEW_STEPS}"
    )
    return [Finding("canaries", "warning", what, "raise train.epochs or data.train_size, or lower train.batch_size")]


def check_noise(recipe: Recipe) -> list[Finding]:
    """Whether canaries of a recipe of texts can take: ε beside the embeddings' rms, and the tokens that are learnt."""
    from llm_unlearn.models.embedding_scale import embeddings_rms
    from llm_unlearn.training.pretraining import base_folder

    section, tokens, findings = recipe.poison.gaussian, recipe.poison.tokens, check_exposures(recipe)
    if tokens and tokens.place == "text" and recipe.data.loss_on == "completion":
        what = "data.loss_on: completion, and the strings of token canaries stand in the text, which is not learnt"
        findings.append(Finding("canaries", "warning", what, "poison.tokens.place=answer, or data.loss_on=text"))
    if section is None:
        return findings
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
    remedy = f"poison.gaussian.epsilon={rms:.2g}, the rms"
    return [*findings, Finding("canaries", "warning", f"{what}: {why}", remedy)]
