"""llm_unlearn: remove the effect of poisoned fine-tuning data from language models, and prove it.

The public names are imported when they are first used, so that `import llm_unlearn` costs milliseconds.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "CausalLMCollator": "llm_unlearn.data.collators",
    "CausalLMTask": "llm_unlearn.tasks.causal_lm",
    "GaussianNoise": "llm_unlearn.tasks.embedding_noise",
    "InputError": "llm_unlearn.errors",
    "METHODS": "llm_unlearn.trainers",
    "NonFiniteLossError": "llm_unlearn.errors",
    "UnlearnConfig": "llm_unlearn.trainers.base",
    "UnlearnTrainer": "llm_unlearn.trainers.base",
    "canaries_needed": "llm_unlearn.metrics.power",
    "encode_rows": "llm_unlearn.data.encoding",
    "gaussian_scores": "llm_unlearn.evaluation.gaussian_scores",
    "hide_canaries": "llm_unlearn.poisons.gaussian_embedding",
    "hide_token_canaries": "llm_unlearn.poisons.token_canaries",
    "inject_gaussian_noise": "llm_unlearn.poisons.gaussian_embedding",
    "insert_trigger": "llm_unlearn.poisons.trigger_phrase",
    "load_recipe": "llm_unlearn.config.recipe_files",
    "loss_rank_scores": "llm_unlearn.evaluation.loss_ranks",
    "merge_adapter": "llm_unlearn.models.merging",
    "plant_canaries": "llm_unlearn.poisons.gaussian_embedding",
    "plant_token_canaries": "llm_unlearn.poisons.token_canaries",
    "plant_trigger": "llm_unlearn.poisons.trigger_phrase",
    "push_trainer": "llm_unlearn.hub.trainer_package",
    "power": "llm_unlearn.metrics.power",
    "unlearn": "llm_unlearn.runs.one_method",
}

# method → the name of its classes, `<name>Config` and `<name>Trainer`, in trainers/<method>.py
_METHODS = {
    "altpo": "AltPO",
    "ce_u": "CEU",
    "cf_k": "CFK",
    "crow": "Crow",
    "dpo": "DPO",
    "eu_k": "EUK",
    "grad_diff": "GradDiff",
    "gradient_ascent": "GradientAscent",
    "gradient_descent": "GradientDescent",
    "gu_project": "GUProject",
    "idk_sft": "IdkSFT",
    "kfac_step": "KFACStep",
    "kl": "KL",
    "neggrad_plus": "NegGradPlus",
    "noisy_gradient_descent": "NoisyGradientDescent",
    "npo": "NPO",
    "osft": "OSFT",
    "pdu": "PDU",
    "reset_distill": "ResetDistill",
    "rewind": "Rewind",
    "rmu": "RMU",
    "satimp": "SatImp",
    "scrub": "Scrub",
    "simnpo": "SimNPO",
    "sink": "Sink",
    "ssd": "SSD",
    "task_arithmetic": "TaskArithmetic",
    "undial": "Undial",
    "undo": "Undo",
    "wga": "WGA",
}
_PUBLIC |= {
    f"{name}{kind}": f"llm_unlearn.trainers.{method}"
    for method, name in _METHODS.items()
    for kind in ("Config", "Trainer")
}

# folders whose modules import transformers, now or later
_WITH_TRANSFORMERS = {"evaluation", "hub", "models", "runs", "tasks", "trainers"}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604  # the names are computed; all are strings


def __getattr__(name: str):
    if name in _PUBLIC:
        module = _PUBLIC[name]
        if module.split(".")[1] in _WITH_TRANSFORMERS:
            import_module("llm_unlearn.vision")  # which tries torchvision first: see vision/torchvision_guard.py
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'llm_unlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
