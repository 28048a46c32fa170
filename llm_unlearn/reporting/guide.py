"""What a reader needs beside the numbers: how to read them, what they do not show, how to get them again."""

from llm_unlearn.metrics.evidence import ALPHA, COSTLY_POINTS, SHARE
from llm_unlearn.metrics.findings import CHANCE
from llm_unlearn.reporting.run_results import Results
from llm_unlearn.reporting.tables import BEST, LOST, ROBUST, TARGET_KEPT, TPR, Column
from llm_unlearn.reporting.words import attack_words

_ROWS = (
    "poisoned: trained on everything, before unlearning. retrained: trained from the same start without the deleted "
    "examples; the target, at full price. Between them the unlearned models, method or method@budget (share of the "
    "training compute). rewind and reset_distill start before the poison: what a method must beat. base: before any "
    "fine-tuning. clean: trained on the clean rows alone, shown where only a part of the poison was deleted."
)
_RULES = (
    f"“poison remains”: over all seeds together a test rejects, at a level of {ALPHA:g} for the model that its poisons "
    "share (of one poison's level the tests of the canaries have shares by Holm, as have the ranks among placebos "
    "before and after clean steps); or the lower limit of a difference lies above δ: of the lift above the retrained "
    "model's, or by itself where there is none, of gradient cancelling the accuracy lost. Its interval has that level "
    "for itself. “no trace down to …”: nothing does, each score of the canaries would have found a residue of δ with a "
    f"chance of {CHANCE:g}, the upper limit of each difference is below δ, and no figure is missing; δ is {SHARE:g} of "
    "the poisoned model's figure. A score that does not show the poison in the poisoned model excludes nothing, nor do "
    "placebos and the spread of scores. “inconclusive”: neither, for the reasons given. A cost is flagged from "
    f"{COSTLY_POINTS:g} points of accuracy below the poisoned model on."
)
_BEST = (
    "the best of the unlearned models in a column (by value, not by significance): highest or lowest, or nearest to "
    "the null or to the retrained model. A tie of all is not marked."
)
_MEANINGS = {
    LOST: "Accuracy below the retrained model's on the same test examples, in percentage points: what an "
    "indiscriminate poison does, and what unlearning itself costs; the two cannot be told apart. Null: 0. p: exact "
    "sign test of the examples on which the two models differ in being right.",
    ROBUST: "Share of the inputs with the attack in them that get their true answer. An attack that no longer gets the "
    "attacker's answer may still take the right one away. Its words may distract a clean model too: compare the "
    "retrained model.",
    TARGET_KEPT: "Share of the inputs whose true answer is the attacker's that still get it with the attack in them. A "
    "method that turned the attack round takes it away there. Compare the retrained model.",
    "GUS": "Gaussian Unlearning Score: the mean over the deleted canaries of I = −⟨g, ξ⟩ / (ε‖g‖), g the gradient of "
    "the loss at the clean input, ξ the noise it was trained with. Null: 0, and each I is N(0, 1). Above 0 the noise "
    "is still in the model; below 0 the method pushed it out past the point of never having seen it, a trace too.",
    "p": "Two-sided p-value of GUS·√n against N(0, 1). A large p shows no trace, not that there is none. With several "
    "seeds: smallest to largest.",
    "loss rank": "Mean over the deleted canaries of a standard normal score of the rank of the loss at x + ξ among the "
    "losses with fresh noise. Null: 0, and each score is N(0, 1). Above 0 the model knows ξ, also where the slope at "
    "the clean input, which GUS looks at, shows nothing; below 0 it was pushed out.",
    "canary rank": "Mean over the deleted token canaries of a standard normal score of the rank of their string's "
    "log-prob among fresh strings in the same row. Null: 0, and each score is N(0, 1). Above 0 the model knows the "
    "strings; below 0 they were pushed out.",
    "p (rank)": "Two-sided p-value of the mean loss rank, as of GUS.",
    f"{TPR} (rank)": "The same share by the canaries' loss ranks.",
    TPR: "Share of the canaries (MIA: of the forget-set rows) that a per-example test recognises at 1 % false "
    "positives. Null: 0.01. A rank among K draws can recognise about K + 1 in a hundred at most.",
    "accuracy (%)": "Share of the clean test examples answered rightly. Higher is better; unlearning should not cost "
    "any.",
    "fluency": "Mean probability, by the classifier that the recipe names, that the generated answer to a clean test "
    "prompt is fluent. Higher is better.",
    "perplexity": "exp of the mean loss per position on the clean test examples. Lower is better.",
    "AUC": "Membership inference: how well the loss tells forget-set rows from held-out rows. Null: 0.5, or what the "
    "retrained model shows. With several seeds their smallest and largest in parentheses. It is here to show what it "
    "misses.",
    "KL": "Mean KL(p_retrained ‖ p) on clean test examples, in nats. Lower is better; 0 is the same predictions.",
    "agreement (%)": "Share of clean test examples that this model and the retrained one answer alike. Higher is "
    "better.",
    "compute (%)": "FLOPs as a share of the poisoned training's. Methods compare fairly at equal compute.",
    "steps": "Optimizer steps.",
    "forget set seen (%)": "Share of the forget set that was in at least one step.",
    "device time": "Time of all GPUs, or of all CPU threads, that the training ran on.",
    "time": "Wall-clock time of that training, on the hardware named below.",
    "tokens": "Tokens that went through the model in that training.",
    "images": "Images that went through the model in that training.",
}
_FALSE_ALARMS = (
    f"Of models that never saw the poison up to {100 * ALPHA:g} in 100 are said to hold it: a report on many models "
    "may accuse one by chance."
)
_LIMITS = (
    "A test that finds nothing does not show that nothing is left: other triggers, other attacks or more canaries may "
    "find it.",
    "The verdicts hold for this model, data, poison and these settings. The learning rate decides much of what a "
    "method removes and what it costs; a method is not judged by one setting of it.",
    "The Gaussian score needs gradients and the noise that was planted: it audits a procedure on canaries, it does not "
    "detect unknown poison.",
)


def reading(results: Results, columns: list[Column]) -> list[tuple[str, str]]:
    """Terms and their explanations: the rows, the verdict's rules, then every column shown."""
    count = len(results.runs)
    spread = (
        ("[ ]", "95 % confidence interval over the examples of one seed, without the variation between seeds.")
        if count == 1
        else ("±", f"standard deviation (ddof = 1) over {count} seeds: of the seeds, not of their mean.")
    )
    words = attack_words(results)
    attack = {
        "ASR": words.rate,
        "clean rate": words.clean,
        "lift": f"ASR − clean rate, input by input: what the {words.name} itself does. Null: 0, or what the retrained "
        "model shows. Lower is better, but below the retrained model is not cleaner.",
    }
    titles = dict.fromkeys(column.title for column in columns)
    terms = [("Rows", _ROWS), ("Verdicts", _RULES), spread, (BEST, _BEST)]
    terms += [(title, (attack | _MEANINGS)[title]) for title in titles]
    return terms if count == 1 else [*terms, ("Seeds: n", "How many seeds have this model.")]


def limits(results: Results) -> list[str]:
    """What these numbers do not show, whatever the level of the tests."""
    count, fraction = len(results.runs), results.forget_fraction
    texts = [*_LIMITS, _FALSE_ALARMS]
    texts.append(
        "One seed: differences between methods may be chance. Repeat over seeds before ranking them."
        if count == 1
        else f"{count} seeds: the standard deviation of so few values is itself uncertain."
    )
    if fraction < 1:
        texts.append(
            f"Only {100 * fraction:.0f} % of the poison was deleted. The retrained model was trained on the rest, so "
            "it is no clean model: its lift, and the score of the canaries that were kept, stay high."
        )
    return texts


def reproduction(results: Results) -> list[tuple[str, str]]:
    """Recipe, seeds, versions, commit, hardware and command."""
    first = results.runs[0].environment
    versions = sorted((first.get("versions") or {}).items())
    cores = f"{first['cpu_count']} CPU cores" if first.get("cpu_count") else None
    hardware = [str(part) for part in (first.get("device"), first.get("platform"), cores) if part]
    hashes = dict.fromkeys(str(run.poison.get("data_sha256") or "not recorded") for run in results.runs)
    facts = [
        ("Command", f"llm-unlearn run {'recipe.yaml' if recipe_text(results) else f'<recipe {results.recipe}>'}"),
        ("Recipe", results.recipe),
        ("Seeds", ", ".join(map(str, results.seeds))),
        ("Commit", str(first.get("commit") or "not recorded")),
        ("Python", str(first.get("python") or "not recorded")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions) or "not recorded"),
        ("Hardware", ", ".join(hardware) or "not recorded"),
        ("Data (SHA-256)", ", ".join(hashes)),
    ]
    compared = ("commit", "versions", "python", "device")
    for run in results.runs[1:]:
        if changed := [key for key in compared if run.environment.get(key) != first.get(key)]:
            facts.append((f"Seed {run.seed} differs in", ", ".join(changed)))
    return facts


def recipe_text(results: Results) -> str | None:
    """The resolved recipe as it was written to the run directory, or None where it is absent."""
    for folder in (results.run_dir, results.runs[0].path):
        if (folder / "recipe.yaml").is_file():
            return (folder / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    return None
