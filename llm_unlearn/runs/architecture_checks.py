"""What a recipe asks of its model's architecture, tried on the model without its weights, before anything runs."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import new_adapter
from llm_unlearn.models.bare import bare_model
from llm_unlearn.models.devices import whole
from llm_unlearn.models.lora_targets import default_targets

if TYPE_CHECKING:
    from llm_unlearn.config.model_sections import ModelSection

logger = logging.getLogger(__name__)


def check_architecture(section: "ModelSection", configs: list[tuple[str, Any]]) -> None:
    """Refuse a model that is not causal, an adapter that finds no layer, a method that cannot work on the architecture.

    Args:
        section: the recipe's `model`.
        configs: method and config of everything that the recipe runs.

    Raises:
        InputError: naming the field.
    """
    from llm_unlearn.tasks.causal_lm import CausalLMTask
    from llm_unlearn.trainers import METHODS
    from llm_unlearn.training.block_options import check_kernels

    with whole(), torch.device("meta"):
        model = bare_model(section)
        # of a type that can be an encoder, too; a causal model of such a type says so
        if hasattr(model.config, "add_cross_attention") and not getattr(model.config, "is_decoder", True):
            raise InputError(
                f"recipe.model: a {model.config.model_type} whose config does not say is_decoder: true sees the tokens "
                "that it is to predict; give a causal language model"
            )
        if section.lora:
            if section.lora.target_modules is None:
                logger.info("model.lora.target_modules: not given, so %s", default_targets(model))
            model = new_adapter(model, section.lora)
        if section.use_liger_kernel:
            try:
                check_kernels(model, None)
            except InputError as error:
                raise InputError(f"recipe.model.{error}") from None
        for method, config in configs:
            try:
                if config.use_liger_kernel:
                    check_kernels(model, config.liger_kernel_config)
                METHODS[method][1].weights_to_train(CausalLMTask(), model, config)
            except InputError as error:
                raise InputError(f"recipe.unlearn.methods.{method}: {error}") from None
