"""The top of the report in words: what was poisoned, what it did, what each model shows, at what cost."""

from llm_unlearn.reporting.formats import number, p_phrase, percent
from llm_unlearn.reporting.results import Results
from llm_unlearn.reporting.run_summary import Statistic
from llm_unlearn.reporting.verdicts import CLEAR, COSTLY_POINTS, REMAINS, TRACE, Verdict, judge, values
from llm_unlearn.reporting.words import attack_words, has_damage, poison_parts


def headline(verdicts: list[Verdict]) -> str:
    """One sentence over all unlearned models: how many leave poison, how many cost accuracy, which do neither."""
    if not verdicts:
        return "No method has been evaluated yet: this report shows the poisoned and the retrained model."
    total = len(verdicts)
    remains = sum(v.status in (REMAINS, TRACE) for v in verdicts)
    costly = sum(v.costly for v in verdicts)
    good = [v.model for v in verdicts if v.status == CLEAR and not v.costly]
    models = "1 unlearned model" if total == 1 else f"{total} unlearned models"
    text = (
        f"Of {models}, {remains} still {'shows' if remains == 1 else 'show'} the poison and {costly} "
        f"{'loses' if costly == 1 else 'lose'} {COSTLY_POINTS:g} or more points of accuracy; "
    )
    if not good:
        return text + "none is free of both faults."
    return text + f"free of both by these tests: {', '.join(good)}."


def paragraphs(results: Results) -> list[str]:
    """What was poisoned, what the poison did, and what retraining without it gives."""
    return [_poison(results), _poisoned(results), _retrained(results)]


def _poison(results: Results) -> str:
    poison = results.runs[0].poison
    forgotten, fraction = len(poison.get("forget_ids", [])), poison.get("forget_fraction", 1.0)
    share = "all of the poison" if fraction == 1 else f"{percent(fraction, 0)} of the poison"
    mistaken = len(poison.get("false_positive_ids", []))
    share += f" and {mistaken} clean rows taken for it" * bool(mistaken)
    return (
        f"Poisoned: of {poison['train_size']:,} training examples {'; '.join(poison_parts(results))}. Asked to be "
        f"deleted: {forgotten} examples ({share})."
    )


def _poisoned(results: Results) -> str:
    text = f"Poisoned model: {state(results, 'poisoned')}."
    rate, clean = (_mean(values(results, "poisoned", "attack", key)) for key in ("success_rate", "clean_rate"))
    if rate is not None:
        text += f" {attack_words(results).said.format(percent(rate), percent(clean))}"
    return text


def _retrained(results: Results) -> str:
    share = values(results, "retrained", "cost", "share_of_training")
    return (
        f"Retrained without the deleted examples, at {percent(_mean(share), 0)} of the training compute: "
        f"{state(results, 'retrained')}. This is what a perfect deletion looks like."
    )


def state(results: Results, name: str) -> str:
    """The figures of one model in a row: lift, GUS, canaries seen, accuracy."""
    parts = []
    for label, path, digits in (("attack lift", ("attack", "lift"), 2), ("GUS", ("gus", "mean"), 2)):
        found = values(results, name, *path)
        if found:
            parts.append(f"{label} {_spread(found, digits)}")
    p_values = values(results, name, "gus", "p_value")
    if p_values:
        parts[-1] += f" ({p_phrase(p_values)})"
    tpr = values(results, name, "gus", "tpr_at_fpr", "0.01")
    if tpr:
        parts.append(f"{percent(_mean(tpr))} of the canaries recognised at 1 % false positives")
    accuracy = values(results, name, "utility", "accuracy")
    if accuracy:
        parts.append(f"accuracy {_spread([100 * a for a in accuracy], 1)} %")
    lost = values(results, name, "oracle", "accuracy_lost", "mean") if has_damage(results) else []
    if lost:
        p_values = values(results, name, "oracle", "accuracy_lost", "p_value")
        parts[-1] += f", {_spread([100 * share for share in lost], 1)} points below retrained ({p_phrase(p_values)})"
    return ", ".join(parts)


def method_lines(results: Results) -> list[dict]:
    """One line per unlearned model: `model`, `status`, `price` (a flag or empty), `remains`, figures as `sentence`."""
    lines = []
    for name in results.methods:
        verdict = judge(results, name)
        share = _mean(values(results, name, "cost", "share_of_training"))
        cost = f"{verdict.utility}, at {percent(share)} of the training compute"
        parts = (
            f"Fired: {verdict.evidence}" if verdict.evidence else "",
            verdict.effect,
            cost,
            _beside_rewind(results, name),
        )
        sentence = " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)
        lines.append(
            {
                "model": name,
                "status": verdict.status,
                "price": verdict.price,
                "remains": verdict.status in (REMAINS, TRACE),
                "sentence": sentence,
            }
        )
    return lines


def _beside_rewind(results: Results, name: str) -> str:
    """What the method has against retraining that is stopped at the same budget, or nothing where that was not run."""
    rewind = "rewind" + name[len(name.partition("@")[0]) :]
    if name == rewind or rewind not in results.names:
        return ""
    parts = []
    for label, path, scale, digits in (
        ("accuracy", ("utility", "accuracy"), 100, 1),
        ("attack lift", ("attack", "lift"), 1, 2),
        ("GUS", ("gus", "mean"), 1, 2),
    ):
        ours, theirs = (_mean(values(results, model, *path)) for model in (name, rewind))
        if ours is not None and theirs is not None:
            parts.append(f"{label} {number(scale * ours, digits)} against {number(scale * theirs, digits)}")
    return f"beside rewind at the same budget: {', '.join(parts)}" if parts else ""


def _spread(found: list[float], digits: int) -> str:
    statistic = Statistic(tuple(found))
    text = number(statistic.mean, digits)
    return text if statistic.sd is None else f"{text} ± {number(statistic.sd, digits)}"


def _mean(found: list[float]) -> float | None:
    return Statistic(tuple(found)).mean if found else None
