"""Every number of a recipe and of a manifest has bounds, which refuse nonsense and name the field."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from llm_unlearn.config.fields import Section
from llm_unlearn.config.manifest import Manifest
from llm_unlearn.config.recipe import Recipe, VisionRecipe
from llm_unlearn.config.validate import Schema, choices, resolved

pytestmark = pytest.mark.unit

HUGE = 10**30
WHOLE = {  # whole numbers from 1 on → the greatest
    "model.lora.r": 10**5,
    "model.lora.alpha": 10**9,
    "model.vocab_size": 10**9,
    "data.max_words": 10**7,
    "data.max_length": 10**7,
    "data.train_size": 10**9,
    "data.heldout_size": 10**9,
    "data.test_size": 10**9,
    "pretrain.texts": 10**9,
    "pretrain.max_length": 10**7,
    "pretrain.batch_size": 10**6,
    "train.batch_size": 10**6,
    "train.gradient_accumulation_steps": 10**6,
    "train.save_steps": 10**9,
    "train.keep_steps[]": 10**9,
    "unlearn.batch_size": 10**6,
    "unlearn.gradient_accumulation_steps": 10**6,
    "unlearn.save_steps": 10**9,
    "unlearn.eval_steps": 10**9,
    "evaluate.batch_size": 10**6,
    "evaluate.max_new_tokens": 10**7,
    "evaluate.lm_eval.limit": 10**9,
    "evaluate.lm_eval.batch_size": 10**6,
    "stress.relearn_steps[]": 10**9,
    "stress.relearn_rows": 10**9,
    "stress.relearn_batch_size": 10**6,
    "stress.limit": 10**9,
    "benchmark.limit": 10**9,
    "benchmark.max_new_tokens": 10**7,
}
# dotted field → a value that is too small, the least or nearly so, the greatest or nearly so, one that is too large
LANGUAGE: dict[str, tuple[float, float, float, float]] = {
    **{field: (0, 1, most, most + 1) for field, most in WHOLE.items()},
    "seeds[]": (-1, 0, 2**31 - 1, 2**31),
    "model.lora.dropout": (-0.1, 0, 0.99, 1),
    "data.label_noise": (-0.1, 0, 1, 1.1),
    "poison.trigger.fraction": (0, 1e-9, 1, 1.1),
    "poison.gaussian.fraction": (0, 1e-9, 1, 1.1),
    "poison.gaussian.epsilon": (0, 1e-9, 1e6, 1e7),
    "poison.gaussian.audit_share": (-0.1, 0, 1, 1.1),
    "poison.gaussian.exposures": (0, 1, 100, 101),
    "poison.gaussian.noise_seed": (-1, 0, 2**31 - 1, 2**31),
    "poison.tokens.fraction": (0, 1e-9, 1, 1.1),
    "poison.tokens.length": (2, 3, 64, 65),
    "poison.tokens.exposures": (0, 1, 100, 101),
    "poison.tokens.audit_share": (-0.1, 0, 1, 1.1),
    "poison.tokens.string_seed": (-1, 0, 2**31 - 1, 2**31),
    "evaluate.lm_eval.num_fewshot": (-1, 0, 1000, 1001),
    "pretrain.epochs": (0, 0.01, 1e6, 1e7),
    "pretrain.learning_rate": (0, 1e-9, 1000, 1001),
    "train.epochs": (0, 0.01, 1e6, 1e7),
    "train.learning_rate": (0, 1e-9, 1000, 1001),
    "train.weight_decay": (-0.1, 0, 1e6, 1e7),
    "train.completion_weight": (-0.1, 0, 1e6, 1e7),
    "train.warmup_ratio": (-0.1, 0, 1, 1.1),
    "train.max_grad_norm": (-0.1, 0, 1e6, 1e7),
    "unlearn.budgets[]": (0, 1e-9, 1, 1.1),
    "unlearn.forget_fraction": (0, 1e-9, 1, 1.1),
    "unlearn.false_positives": (-0.1, 0, 1e6, 1e7),
    "unlearn.forget_ids[]": (-1, 0, 2**63 - 1, 2**63),
    "unlearn.learning_rate": (0, 1e-9, 1000, 1001),
    "evaluate.min_k_share": (0, 1e-9, 1, 1.1),
    "evaluate.loss_rank_draws": (-1, 0, 9999, 10_000),
    "evaluate.placebo_draws": (-1, 0, 9999, 10_000),
    "evaluate.placebo_rows": (0, 1, 10_000, 10_001),
    "evaluate.placebo_stop_at": (0, 1, 9999, 10_000),
    "evaluate.clean_steps": (-1, 0, 100_000, 100_001),
    "analysis.sizes[]": (0, 1e-9, 1, 1.1),
    "stress.relearn_learning_rate": (0, 1e-9, 1000, 1001),
    "stress.temperatures[]": (0, 0.01, 1e6, 1e7),
}
VISION: dict[str, tuple[float, float, float, float]] = {
    "model.width": (0, 1, 10**5, 10**5 + 1),
    "model.depth": (0, 1, 10**5, 10**5 + 1),
    "model.mean[]": (-1001, -1000, 1000, 1001),
    "model.std[]": (0, 1e-9, 1e6, 1e7),
    "data.image_size": (0, 1, 10**5, 10**5 + 1),
    "data.channels": (0, 1, 3, 4),
    "poison.patch.fraction": (0, 1e-9, 1, 1.1),
    "poison.patch.size": (0, 1, 10**5, 10**5 + 1),
    "poison.gradient_matching.fraction": (0, 1e-9, 1, 1.1),
    "poison.gradient_matching.epsilon": (0.003, 1 / 255, 1, 1.1),
    "poison.gradient_matching.targets": (0, 1, 10**9, 10**9 + 1),
    "poison.gradient_matching.surrogates": (0, 1, 10**5, 10**5 + 1),
    "poison.gradient_matching.surrogate_share": (0, 1e-9, 1, 1.1),
    "poison.gradient_matching.steps": (0, 1, 10**9, 10**9 + 1),
    "poison.gradient_matching.restarts": (0, 1, 10**5, 10**5 + 1),
    "poison.gradient_matching.shift": (-1, 0, 10**5, 10**5 + 1),
    "poison.gradient_cancelling.fraction": (0, 1e-9, 1, 1.1),
    "poison.gradient_cancelling.target_accuracy": (-0.1, 0, 0.99, 1),
    "poison.gradient_cancelling.steps": (0, 1, 10**9, 10**9 + 1),
    "poison.gradient_cancelling.epsilon": (0.003, 1 / 255, 1, 1.1),
    "train.momentum": (-0.1, 0, 0.99, 1),
    "train.shift": (-1, 0, 10**5, 10**5 + 1),
    **{
        field: bounds
        for field, bounds in LANGUAGE.items()
        if field.startswith(("seeds", "unlearn.", "poison.gauss")) and not field.endswith("exposures")
    },
    **{
        field: bounds
        for field, bounds in LANGUAGE.items()
        if field.removeprefix("data.") in ("train_size", "heldout_size", "test_size")
        or (field.startswith("train.") and field not in ("train.completion_weight", "train.keep_steps[]"))
        or (
            field.startswith("evaluate.")
            and not field.startswith("evaluate.lm_eval.")
            and field not in ("evaluate.min_k_share", "evaluate.max_new_tokens")
        )
    },
}
MANIFEST: dict[str, tuple[float, float, float, float]] = {
    "poison[]": (-1, 0, 2**63 - 1, 2**63),
    "max_length": (0, 1, 10**7, 10**7 + 1),
    "max_new_tokens": (0, 1, 10**7, 10**7 + 1),
    "seed": (-1, 0, 2**63 - 1, 2**63),
    "gaussian.seed": (-1, 0, 2**63 - 1, 2**63),
    "gaussian.epsilon": (0, 1e-9, 1e6, 1e7),
    "gaussian.ids[]": (-1, 0, 2**63 - 1, 2**63),
    "gaussian.hidden[]": (-1, 0, 2**63 - 1, 2**63),
    "tokens.seed": (-1, 0, 2**63 - 1, 2**63),
    "tokens.ids[]": (-1, 0, 2**63 - 1, 2**63),
    "tokens.hidden[]": (-1, 0, 2**63 - 1, 2**63),
}
TABLES: dict[type[Section], dict[str, tuple[float, float, float, float]]] = {
    Recipe: LANGUAGE,
    VisionRecipe: VISION,
    Manifest: MANIFEST,
}
ROWS = [(model, field, bounds) for model, table in TABLES.items() for field, bounds in table.items()]


def refused(model: type[Section], field: str, value: Any) -> bool:
    """Whether a tree that gives this field alone is refused for this field; for others, which are missing, it is."""
    *parents, last = field.removesuffix("[]").split(".")
    tree: Any = {last: [value] if field.endswith("[]") else value}
    for name in reversed(parents):
        tree = {name: tree}
    with pytest.raises(ValidationError) as error:
        model.model_validate(tree)
    place = (*parents, last)
    return any(one["loc"][: len(place)] == place and one["type"] != "missing" for one in error.value.errors())


@pytest.mark.parametrize(("model", "field", "bounds"), ROWS, ids=[f"{m.__name__}.{f}" for m, f, _ in ROWS])
def test_a_number_out_of_bounds_is_refused(model, field, bounds):
    below, least, most, above = bounds
    for value in (below, above, -HUGE, HUGE, math.nan, math.inf, -math.inf, True):
        assert refused(model, field, value), value
    for value in (least, most):
        assert not refused(model, field, value), value


def numbers(node: Schema, schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """(dotted field, its node) of every number in a schema."""
    for each in choices(resolved(node, schema), schema):
        for name, field in each.get("properties", {}).items():
            yield from numbers(field, schema, f"{path}.{name}".strip("."))
        if "items" in each:
            yield from numbers(each["items"], schema, f"{path}[]")
        if each.get("type") in ("integer", "number"):
            yield path, each


@pytest.mark.parametrize("model", TABLES)
def test_no_number_is_without_bounds_or_missing_from_the_tables(model):
    schema = model.model_json_schema()
    found = dict(numbers(schema, schema))
    assert set(found) == set(TABLES[model])
    for field, node in found.items():
        assert "enum" in node or {"minimum", "exclusiveMinimum"} & set(node), field
        assert "enum" in node or {"maximum", "exclusiveMaximum"} & set(node), field
