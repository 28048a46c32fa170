"""What a report calls the poisons of a run: triggers and embeddings of texts, patches, targets and pixels of images."""

from dataclasses import dataclass

from llm_unlearn.reporting.results import Results


@dataclass(frozen=True)
class Words:
    """How an attack is spoken of.

    Args:
        group: above its columns. tested: what it is measured on. name: of the attack in `<name> lift`.
        rate, clean, lift: meanings of the three columns. said: what the poisoned model does, with two rates to fill in.
    """

    group: str
    tested: str
    name: str
    rate: str
    clean: str
    lift: str
    said: str


_LIFT = "Null: 0, or what the retrained model shows. Lower is better, but below the retrained model is not cleaner."
_OTHERS = (
    "whose true label is not the attacker's target, the share answered with the target once the {} is in. 0 to "
    "1, lower is better; a clean model shows its clean rate."
)
ATTACKS = {
    "trigger": Words(
        "Trigger",
        "triggered test examples",
        "trigger",
        "Attack success rate: of the held-out examples " + _OTHERS.format("trigger"),
        "The same share on the same examples without the trigger: a clean model errs too.",
        "ASR − clean rate, paired by example: what the trigger itself does. " + _LIFT,
        "With the trigger in, it gives the attacker's answer to {} of the examples whose true label is another; "
        "without it to {} of the same examples.",
    ),
    "patch": Words(
        "Patch",
        "patched test images",
        "patch",
        "Attack success rate: of the test images " + _OTHERS.format("patch"),
        "The same share on the same images without the patch: a clean model errs too.",
        "ASR − clean rate, paired by image: what the patch itself does. " + _LIFT,
        "With the patch on, it gives the attacker's class to {} of the images of other classes; without it to {} of "
        "the same images.",
    ),
    "gradient_matching": Words(
        "Targets",
        "target images",
        "target",
        "Attack success rate: the share of the target images that get the adversary's label. 0 to 1, lower is better.",
        "The share of the controls, one other test image of the same class for each target, that get that label.",
        "ASR − clean rate, target by target: what the poison does to its targets beyond their classes. " + _LIFT,
        "It gives the adversary's label to {} of the target images, and to {} of as many other images of their "
        "classes.",
    ),
}
# what columns say of a run of images
OF_IMAGES = {
    "utility.perplexity": {"meaning": "exp of the mean loss on the clean test images. Lower is better."},
    "cost.train_tokens": {"title": "images", "meaning": "Images that went through the model in that training."},
}


def attack_words(results: Results) -> Words:
    """The words of the attack of a run; those of a trigger where it has none."""
    return ATTACKS[attack_kind(results)]


def attack_kind(results: Results) -> str:
    """Which of ATTACKS a run has; `trigger` where it has none."""
    poison = results.runs[0].poison
    return next((kind for kind in ATTACKS if poison.get(kind)), "trigger")


def has_damage(results: Results) -> bool:
    """Whether the run has a poison that is measured by the accuracy that it costs."""
    return bool(results.runs[0].poison.get("gradient_cancelling"))


def is_vision(results: Results) -> bool:
    """Whether the run is of images."""
    return "image_shape" in results.runs[0].poison


def poison_parts(results: Results) -> list[str]:
    """What was done to how many training rows, one phrase for each kind of poison."""
    poison = results.runs[0].poison

    def counted(section: dict, what: str) -> str:
        count = len(section.get("example_ids", []))
        share = 100 * count / poison["train_size"]
        return f"{count} ({share:.1f} %) {what}"

    parts = []
    if trigger := poison.get("trigger"):
        phrases = " or ".join(f"“{phrase}”" for phrase in trigger.get("phrases", []))
        parts.append(counted(trigger, f"carry the trigger {phrases} and are answered with “{trigger.get('target')}”"))
    if patch := poison.get("patch"):
        parts.append(
            counted(
                patch,
                f"carry a patch ({patch['pattern']}, {patch['size']} × {patch['size']} pixels) and "
                f"are labelled “{patch['target']}”",
            )
        )
    if matching := poison.get("gradient_matching"):
        parts.append(
            counted(
                matching,
                "are perturbed by gradient matching, each pixel by at most "
                f"{255 * matching['epsilon']:.0f}/255, against {len(matching['targets'])} "
                "target images",
            )
        )
    if cancelling := poison.get("gradient_cancelling"):
        labels = ", each with a wrong label" if cancelling.get("labels") == "random" else ""
        parts.append(counted(cancelling, f"are made to cancel the clean gradient where the accuracy is low{labels}"))
    if gaussian := poison.get("gaussian"):
        where = "pixels" if is_vision(results) else "embeddings"
        parts.append(
            counted(
                gaussian,
                f"are Gaussian canaries, trained on with noise of ε = {gaussian.get('epsilon')} on their {where}",
            )
        )
    return parts
