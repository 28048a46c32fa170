"""Make a small causal LM and its tokenizer from a config, with weights drawn from a seed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from llm_unlearn.errors import InputError
from llm_unlearn.models.devices import whole

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE tokenizer with its own pad and EOS tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=list(SPECIAL_TOKENS.values())
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **SPECIAL_TOKENS)


LARGEST, MOST_LAYERS = 10**8, 1000  # a base is made to be small; beyond these not even its size can be told


def make_config(architecture: dict[str, Any], vocab_size: int, **ids: int) -> "PreTrainedConfig":
    """A config from fields such as {"model_type": "gpt2", "n_layer": 2, …}.

    Args:
        architecture: `model_type` and fields of its config.
        vocab_size: size of the vocabulary.
        ids: ids of special tokens.

    Raises:
        InputError: the model type is unknown, or its config has no such field.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = dict(architecture)
    try:
        config = AutoConfig.for_model(fields.pop("model_type", None), vocab_size=vocab_size, **ids)
        for name, value in fields.items():
            if not hasattr(config, name):
                raise ValueError(f"a {config.model_type} config has no field '{name}'")
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(f"{name}: {value:.3g} is too large; at most {LARGEST:.0e}")
        config = AutoConfig.for_model(config.model_type, vocab_size=vocab_size, **ids, **fields)
        layers = getattr(config, "num_hidden_layers", None)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise ValueError(f"{layers} layers are too many; at most {MOST_LAYERS}")
        return config
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise _bad_architecture(error) from None


@whole()
def make_model(architecture: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", seed: int) -> "PreTrainedModel":
    """A causal LM of an architecture for a tokenizer, with weights drawn from a seed."""
    from transformers import AutoModelForCausalLM

    config = make_config(
        architecture,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return AutoModelForCausalLM.from_config(config)
        except ValueError as error:  # such as heads that do not divide the width
            raise _bad_architecture(error) from None


def _bad_architecture(error: Exception) -> InputError:
    """The error of a wrong architecture, without the list of all 500 model types."""
    reason = " ".join(str(error).partition(". Should contain one of")[0].split())
    return InputError(f"recipe.model.architecture: {reason}")
