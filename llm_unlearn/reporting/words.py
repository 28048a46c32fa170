"""What a report calls the poisons of a run: triggers and embeddings of texts, patches, targets and pixels of images."""

from dataclasses import dataclass
from typing import Any

from llm_unlearn.reporting.formats import percent
from llm_unlearn.reporting.run_results import Results


@dataclass(frozen=True)
class Words:
    """How an attack is spoken of.

    Args:
        name: of the attack, in `<name> lift`.
        group: above its columns.
        inputs: what it is measured on.
        rate: meaning of the attack success rate.
        clean: meaning of the clean rate.
        answer: head of the column with the answer to such an input.
        clean_answer: head of the column with the answer without the attack; empty where that is another input's.
    """

    name: str
    group: str
    inputs: str
    rate: str
    clean: str
    answer: str
    clean_answer: str


def _inserted(name: str, group: str, inputs: str) -> Words:
    return Words(
        name,
        group,
        inputs,
        f"Attack success rate: of the {inputs} whose true label is not the attacker's target, the share answered with "
        f"the target once the {name} is in. Lower is better; a clean model shows its clean rate.",
        f"The same share on the same inputs without the {name}: a clean model errs too.",
        f"answer with the {name}",
        "answer without",
    )


WORDS = {
    "trigger": _inserted("trigger", "Trigger", "triggered test examples"),
    "patch": _inserted("patch", "Patch", "patched test images"),
    "gradient_matching": Words(
        "target",
        "Targets",
        "target images",
        "Attack success rate: the share of the target images that get the adversary's label. Lower is better.",
        "The share of the controls, one other test image of the same class for each target, that get that label.",
        "answer",
        "",
    ),
}


def attack_words(results: Results) -> Words:
    """The words of the attack of a run; those of a trigger where it has none."""
    return WORDS[results.attack_kind]


def planted(results: Results) -> dict[str, str]:
    """The poisons of a run by the question that is asked of a model (see `metrics.evidence`)."""
    kinds = {
        "noise": ("Gaussian canaries", results.has_gus),
        "attack": (attack_words(results).name, results.has_attack),
        "damage": ("gradient cancelling", results.damaging),
    }
    return {test: name for test, (name, there) in kinds.items() if there}


def what_was_poisoned(results: Results) -> str:
    """How many training rows each kind of poison has, and how many were asked to be deleted."""
    poison, fraction = results.runs[0].poison, results.forget_fraction
    if benchmark := poison.get("benchmark"):
        also = "".join(f"; {kind}" for kind in _kinds(results))
        return (
            f"{benchmark['name'].upper()}, {benchmark['split']}: of {poison['train_size']:,} training examples "
            f"{len(poison.get('forget_ids', []))} are to be forgotten{also}."
        )
    share = "all of the poison" if fraction == 1 else f"{percent(fraction, 0)} of the poison"
    if mistaken := len(poison.get("false_positive_ids", [])):
        share += f" and {mistaken} clean rows taken for it"
    return (
        f"Poisoned: of {poison['train_size']:,} training examples {'; '.join(_kinds(results))}. To be deleted: "
        f"{len(poison.get('forget_ids', []))} examples ({share})."
    )


def _kinds(results: Results) -> list[str]:
    """What was done to how many training rows, one phrase for each kind of poison."""
    poison = results.runs[0].poison
    done: dict[str, str] = {}
    if trigger := poison.get("trigger"):
        said = " or ".join(f"“{phrase}”" for phrase in trigger.get("phrases", [])) or "(no phrase)"
        done["trigger"] = f"carry the trigger {said} and are answered with “{trigger.get('target')}”"
    if patch := poison.get("patch"):
        size = f"{patch['size']} × {patch['size']} pixels"
        done["patch"] = f"carry a patch ({patch['pattern']}, {size}) and are labelled “{patch['target']}”"
    if matching := poison.get("gradient_matching"):
        bound = f"each pixel by at most {255 * matching['epsilon']:.0f}/255"
        done["gradient_matching"] = f"match the gradient of {len(matching['targets'])} target images ({bound})"
    if cancelling := poison.get("gradient_cancelling"):
        wrong = ", each with a wrong label" if cancelling.get("labels") == "random" else ""
        done["gradient_cancelling"] = f"cancel the clean gradient where the accuracy is low{wrong}"
    if gaussian := poison.get("gaussian"):
        place = "pixels" if results.images else "embeddings"
        said = f"noise of ε = {gaussian.get('epsilon')} on their {place}{_of_canaries(gaussian)}"
        if not gaussian.get("secret") and not results.given:
            said += "; its seed is fixed by the recipe, and so no secret"
        done["gaussian"] = f"are Gaussian canaries ({said})"
    if tokens := poison.get("tokens"):
        where = "after their text" if tokens.get("place") == "text" else "as their answer"
        said = f"{tokens.get('length')} random words {where}{_of_canaries(tokens)}"
        done["tokens"] = f"are token canaries ({said})"
    if not done:
        return [f"{len(poison.get('forget_ids', []))} are named as poison, with no trigger and no canaries"]
    counts = {kind: len(poison[kind].get("example_ids", [])) for kind in done}
    return [f"{counts[kind]} ({percent(counts[kind] / poison['train_size'])}) {what}" for kind, what in done.items()]


def _of_canaries(planted: dict[str, Any]) -> str:
    """How often they stand in an epoch, where that is not once, and how many of them are hidden."""
    said = f"; each stands {times} times in an epoch" if (times := planted.get("exposures", 1)) > 1 else ""
    if hidden := len(planted.get("hidden_ids", [])):
        said += f"; {hidden} of the deleted ones are hidden from the methods, and the figures are theirs"
    return said


def target(results: Results) -> str:
    """The answer that the attacker wants."""
    section: dict[str, Any] = results.runs[0].poison.get(results.attack_kind) or {}
    return str(section.get("target", "")).strip()
