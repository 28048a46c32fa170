"""Measure one model under every kind of stress that a recipe's `stress` section asks for."""

import importlib.util
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.utils import tqdm

from llm_unlearn.audit.stress.meter import Meter
from llm_unlearn.audit.stress.relearn import relearn
from llm_unlearn.audit.stress.variants import trigger_variants
from llm_unlearn.errors import InputError
from llm_unlearn.models.devices import on_best_device
from llm_unlearn.models.load import load_model

if TYPE_CHECKING:
    from datasets import Dataset

    from llm_unlearn.config.model_sections import ModelSection
    from llm_unlearn.config.sections import StressSection


def check_stress(section: "StressSection") -> None:
    """Raise InputError where a package that the section needs is not there, or a paraphrase is blank."""
    if section.quantization and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "stress.quantization: bitsandbytes is not installed; `pip install "
            "'llm_unlearn[quantization]'`, or set stress.quantization to []"
        )
    if not all(text.strip() for text in section.paraphrases):
        raise InputError("stress.paraphrases: one is blank, which is no trigger; take it out")


def stress_model(
    load: Callable[[], Any],
    meter: Meter,
    section: "StressSection",
    rows: dict[str, "Dataset"],
    *,
    learning_rate: float,
    noise: dict | None,
    model_section: "ModelSection",
    work_dir: Path,
) -> dict[str, Any]:
    """Measure a model plainly and under each kind of stress; relearning starts from a fresh copy each time.

    Args:
        load: gives the model, fresh from its folder.
        meter: measures a state of the model.
        section: the recipe's `stress` section.
        rows: kind of relearning → tokenised rows.
        learning_rate: learning rate of relearning.
        noise: the manifest's `gaussian` section, for canaries among the rows.
        model_section: how the base is loaded.
        work_dir: for the weights that are saved to be quantised.

    Returns:
        {"schema_version", "plain", "variants", "temperature", "relearn", "merge", "quantization"}, JSON-able, with
        states as in `Meter.state`. `variants` and `temperature` are empty without a trigger, `merge` is None without an
        adapter. On a quantised base, `merge` is None and `quantization` is empty.

    Raises:
        InputError: a kind of relearning has no rows.
    """
    for kind, relearn_rows in rows.items():
        if not len(relearn_rows):
            raise InputError(f"stress.relearn_on: there are no rows for '{kind}'; give some, or take it out")
    model = load().eval()
    is_quantised = model_section.quantization != "none"  # then it can be neither merged in float nor quantised again
    merges, kinds = hasattr(model, "peft_config") and not is_quantised, [] if is_quantised else section.quantization
    states = 1 + merges + len(kinds) + len(rows) * (1 + len(set(section.relearn_steps)))
    with tqdm(total=states, desc="stress", unit=" states", delay=1) as bar:  # silent where datasets' bars are

        def state(stressed: Any, relearned: Collection[int] = ()) -> dict[str, Any]:
            figures = meter.state(stressed, relearned)
            bar.update()
            return figures

        result: dict[str, Any] = {
            "schema_version": 1,
            "plain": state(model),
            **_asked_differently(model, meter, section),
            "relearn": {},
            "merge": None,
            "quantization": {},
        }
        if merges:
            model = model.merge_and_unload()
            result["merge"] = state(model)
        for kind in kinds:
            result["quantization"][kind] = state(quantised(model, kind, model_section, work_dir))
        del model  # relearning holds a copy of its own, with an optimizer
        for kind, relearn_rows in rows.items():
            result["relearn"][kind] = relearn(
                load(),
                relearn_rows,
                section.relearn_steps,
                partial(state, relearned=relearn_rows["example_id"] if kind == "poisoned" else ()),
                collate=meter.evaluator.collate,
                learning_rate=learning_rate,
                batch_size=section.relearn_batch_size,
                seed=meter.seed,
                noise=noise,
                arithmetic=meter.arithmetic,
            )
    return result


def _asked_differently(model: Any, meter: Meter, section: "StressSection") -> dict[str, list]:
    """{"variants", "temperature"} of the unchanged model; both are empty without a trigger."""
    trigger = meter.evaluator.manifest["trigger"]
    if not trigger or not len(meter.triggered):
        return {"variants": [], "temperature": []}
    variants = trigger_variants(trigger["phrases"][0], trigger["position"], section.paraphrases)
    return {
        "variants": meter.variants(model, variants),
        "temperature": [{"temperature": t, **meter.temperature(model, t)} for t in section.temperatures],
    }


def quantised(model: Any, kind: str, section: "ModelSection", work_dir: Path) -> Any:
    """A copy of a full model with its blocks' matrices in 4 (nf4) or 8 bits, by bitsandbytes."""
    import shutil

    folder = work_dir / "to_quantise"
    try:
        model.save_pretrained(folder)
        return on_best_device(load_model(folder, section.changed(quantization=kind))).eval()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
