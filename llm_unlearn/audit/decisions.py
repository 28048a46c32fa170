"""What may be said of the models of an audit, beyond the figures of each: by the poisoned one, and by earlier looks."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.audit.halves import judged_choices, looked_before, note_choice
from llm_unlearn.files import file_stamps

if TYPE_CHECKING:
    from llm_unlearn.audit.subject import Subject
    from llm_unlearn.metrics.evidence import Decision
    from llm_unlearn.metrics.results import Evaluation

NO_CONTROL = (
    "nothing is found, and nothing shows that these tests find this poison where it is: give the model from before "
    "unlearning (--poisoned)"
)
NOT_FOUND = "the tests do not find the poison in the model from before unlearning: look at the manifest"


def decisions(results: "dict[str, Evaluation]") -> "dict[str, Decision]":
    """What may be said of each model of an audit. Without the poisoned one none shows no trace, nor does that one: a
    manifest that is wrong in a way that no file tells finds nothing, or little, in any model.
    """
    from llm_unlearn.metrics.evidence import Status, decide

    poisoned = [result for result in results.values() if result.kind == "poisoned"]
    found = {}
    for name, result in results.items():
        decision = decide([result], [] if result in poisoned else poisoned)
        if decision.status == Status.CLEAR and (result in poisoned or not poisoned):
            why = NOT_FOUND if poisoned else NO_CONTROL
            decision = replace(decision, status=Status.INCONCLUSIVE, reasons=[why])
        found[name] = decision
    return found


def as_json(results: "dict[str, Evaluation]") -> dict[str, dict[str, Any]]:
    """Evaluations with the decisions on them, as the command line prints and writes them."""
    return {name: results[name].to_json() | {"decision": d.to_json()} for name, d in decisions(results).items()}


def look_warnings(subject: "Subject", run_dir: Path, source: str) -> list[str]:
    """What becomes of a verdict by the half of a search that the manifest is of. A model that the search did not judge
    itself is another look.
    """
    if subject.part is None:
        return []
    if subject.part == "tuning":
        return ["these rows and canaries chose the method, so they judge no model (given.half: tuning)"]
    own, *judged = (
        [digest for _, digest in file_stamps([str(folder / "*.safetensors")])]
        for folder in (Path(source).expanduser(), *(run_dir / "unlearned").glob("*"))
    )
    if not own or own not in judged:
        note_choice(run_dir, {"audited": own or source})
    return looked_before(len(judged_choices(run_dir)))


def skipped_figures(reasons: dict[str, str], result: "Evaluation", poison: dict[str, Any]) -> dict[str, str]:
    """The reasons for what an evaluation lacks, with those that the model itself gives.

    Args:
        reasons: section of the evaluation → why it was left out.
        result: the evaluation.
        poison: the manifest, as in poison.json.
    """
    found = {}
    if result.gus is None:
        found["gus"] = "no canary has a gradient on this model"
    elif poison["gaussian"].get("epsilon") is None:
        found["loss_rank"] = "the manifest does not say the `epsilon` of the canaries"
    if result.attack and result.attack.target_rows is None:
        found["attack.target_rows"] = (
            "it takes a phrase, and `test` rows whose own answer is the attacker's; without them a trigger that was "
            "turned round is not seen"
        )
    return found | reasons
