"""The stages that stand in the place of training where the models are given: what is known of them is written down."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.files import file_stamps, write_json
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.runs.given_run import GivenRun

PASSES = 3  # over a batch, of which the fastest is taken for the speed of this machine


def given_stages(run: "GivenRun", before: dict[str, Stage]) -> list[Stage]:
    """One stage for the poisoned model and one for the retrained; those after them depend on the files of these."""
    stages = []
    for name, found in run.checkpoints.items():
        stamps = file_stamps([source for source in (found.source, found.base, run.base) if source])
        inputs: list[Any] = [name, found.source, found.base, run.base, stamps, run.recipe.model.model_dump()]
        work = partial(_record, run, name)
        if name == "poisoned":
            # bf16 and the seed count where they are set: runs from before they did keep their stages
            train = run.recipe.train.model_dump(include={"rows", "epochs", *["bf16"] * run.recipe.train.bf16})
            inputs += [run.rows_key(before), train, run.recipe.unlearn.budget_in, *[run.seed] * bool(run.seed)]
            work = partial(_reckon, run)
        stages.append(Stage(name, inputs, [run.folder / "given" / f"{name}.json"], work, common=name == "poisoned"))
    return stages


def _record(run: "GivenRun", name: str, work_dir: Path) -> None:
    write_json(run.folder / "given" / f"{name}.json", {"source": run.checkpoints[name].source})


def _reckon(run: "GivenRun", work_dir: Path) -> None:
    """What the poisoned training took, by its own record or by what the recipe says, and how fast this machine is."""
    from llm_unlearn.models.flops import FlopCounter

    known: dict[str, Any] = {"source": run.checkpoints["poisoned"].source, "flops": recorded_flops(run)}
    train, timed, searched = run.recipe.train, run.recipe.unlearn.budget_in == "minutes", run.half is not None
    if train.epochs or timed or searched:
        model, rows = run.model("poisoned", common=True), run.train_rows
        counter = FlopCounter.of(model)
        if train.epochs:
            passes = train.epochs * (train.rows or len(rows)) / len(rows)
            sizes = token_counts(rows)
            known |= {"flops": passes * counter.training(*sizes), "train_tokens": round(passes * sizes[0])}
        if timed:
            known["flops_per_second"] = _speed(run, model, counter)
        if searched:
            parts = run.forget_and_retain()
            forget, retain = (counter.training(*token_counts(part)) for part in parts)
            known |= {"forget_pass_flops": forget + retain * len(parts[0]) / len(parts[1]), "retain_pass_flops": retain}
    if run.processes.is_main:
        write_json(run.folder / "given" / "poisoned.json", known)


def token_counts(rows: "Dataset") -> tuple[int, int]:
    """Tokens of encoded rows, and how many of them are supervised."""
    from llm_unlearn.data.encoding import IGNORE

    tokens = sum(map(len, rows["input_ids"]))
    return tokens, sum(sum(label != IGNORE for label in labels[1:]) for labels in rows["labels"])


def recorded_flops(run: "GivenRun") -> float | None:
    """The FLOPs of the poisoned training, where a run of ours made the model and left its `cost.json` beside it."""
    import json

    path = Path(run.checkpoints["poisoned"].source).expanduser() / "cost.json"
    try:
        cost = json.loads(path.read_text(encoding="utf-8"))
        flops = cost["flops"] if "steps" not in cost else None  # the cost of an unlearning is no training's
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(flops) if isinstance(flops, int | float) and 0 < flops < float("inf") else None


def _speed(run: "GivenRun", model: Any, counter: Any) -> float:
    """FLOPs a second of a forward and a backward pass over a step's rows."""
    import torch

    from llm_unlearn.data.collators import CausalLMCollator
    from llm_unlearn.data.encoding import IGNORE
    from llm_unlearn.models.devices import batch_on, input_device
    from llm_unlearn.tasks.causal_lm import CausalLMTask

    rows = run.train_rows.select_columns(["input_ids", "labels"])
    rows = list(rows.select(range(min(2 * run.recipe.unlearn.batch_size, len(rows)))))
    batch = batch_on(input_device(model), CausalLMCollator(run.tokenizer.pad_token_id)(rows))
    tokens = sum(len(row["input_ids"]) for row in rows)
    positions = sum(sum(label != IGNORE for label in row["labels"][1:]) for row in rows)
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        CausalLMTask().compute(model, batch, lambda found: found.mean_nll().mean()).backward()
        model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return run.processes.from_main(counter.training(tokens, positions) / min(seconds))
