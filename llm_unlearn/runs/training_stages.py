"""The stages `poison` and `train`: the corrupted data, and the models that are fine-tuned on it."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llm_unlearn.files import file_stamps, write_json
from llm_unlearn.runs.seed_run import SECRET
from llm_unlearn.runs.stages import Stage

if TYPE_CHECKING:
    from llm_unlearn.runs.seed_run import SeedRun

CONTACT_SHEET = "contact_sheet.npz"  # poisoned images beside their clean ones


def poison_stages(run: "SeedRun", before: dict[str, Stage]) -> list[Stage]:
    """The corrupted data and its manifest."""
    section, poison = run.recipe.unlearn, dict(run.recipe.poison)
    gaussian, tokens = poison["gaussian"], poison.get("tokens")
    forget = [section.forget_fraction, section.false_positives, section.forget_ids, gaussian and gaussian.audit_share]
    if tokens:
        forget.append(tokens.audit_share)
    if isinstance(section.forget_ids, str):
        forget.append(file_stamps([section.forget_ids]))
    inputs = [*run.corruption, forget]
    return [Stage("poison", inputs, [run.folder / "data", run.folder / "poison.json"], partial(_poison, run))]


def _poison(run: "SeedRun", work_dir: Path) -> None:
    """Corrupt the data; what was written is renamed into place once all of it is there.

    The secret comes first: a stage that is killed goes on with the noise that it began with.
    """
    from llm_unlearn.poisons.stored import write_manifest

    if run.secret is not None:
        write_json(work_dir / SECRET, {"secret": run.secret}, private=True)
    sets, manifest = run.corrupted(work_dir)
    for name, rows in sets.items():
        rows.save_to_disk(work_dir / "data" / name)
    write_manifest(work_dir / "poison.json", manifest)
    shutil.rmtree(run.folder / "data", ignore_errors=True)
    for name in ("data", "poison.json", CONTACT_SHEET):
        if (work_dir / name).exists():
            os.replace(work_dir / name, run.folder / name)


def train_stages(run: "SeedRun", before: dict[str, Stage]) -> list[Stage]:
    """The poisoned model, the retrained oracle, and the clean one where it is another."""
    rows = {"poisoned": run.corruption, "retrained": before["poison"].key}
    if run.recipe.has_clean_oracle:
        rows["clean"] = run.corruption
    return [run.trained(name, inputs, partial(_train, run, name)) for name, inputs in rows.items()]


def _train(run: "SeedRun", name: str, work_dir: Path) -> None:
    """Fine-tune the base on S_corr (`poisoned/`), on S_corr ∖ U (`retrained/`) or on the clean rows alone
    (`clean/`), from the same start.
    """
    if name == "poisoned":
        rows = run.train_rows
    elif name == "retrained":
        rows = run.forget_and_retain()[1]
    else:
        rows = run.train_rows.filter(lambda row: row["poison"] == "none", desc="clean rows")
    run.fine_tune(name, rows, work_dir)
