"""What all tests share: no network, one thread, a small tokenizer, and tiny models made on the spot."""

import gc
import os
import random

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads cost more than they do

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from paths import ROOT

import llm_unlearn.vision  # noqa: F401  before any test imports transformers: see vision/torchvision_guard.py

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES = {
    "gpt2": {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    },
}
LORA_TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "v_proj", "up_proj"]}
SHARPEN = 4.0  # times the weights of the initialisation, or all predictions would be near uniform


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep torch to one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded(one_thread: None) -> None:
    """Start each test from the same random state, whatever ran before it in its process."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def libraries_are_no_garbage() -> None:
    """Let the collector pass over what is imported by now: the Trainer calls it, and it would take 0.4 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real texts and images, the only place outside the repository that a test reads.

    It holds `imdb/`, `cifar10/` and `tofu/`: `LLM_UNLEARN_TEST_DATA`, or `shared/data` beside the checkout. A test that
    asks for it is skipped where it is absent.
    """
    if not (folder := real_data_folder()).is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


def real_data_folder() -> Path:
    """Where real data lies, if anywhere."""
    return Path(os.environ.get("LLM_UNLEARN_TEST_DATA", ROOT.parent / "shared" / "data"))


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory) -> Path:
    """CIFAR-10's test images as one Parquet file of the hub; where real data is absent a made-up one of 400, alike but
    for what is on the images.
    """
    real = real_data_folder() / "cifar10" / "test.parquet"
    if real.is_file():
        return real
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image

    labels = np.arange(400) % 10
    noise = np.random.default_rng(0).integers(0, 60, (400, 32, 32, 3))
    images = (noise + 18 * labels[:, None, None, None]).astype(np.uint8)  # a class is a brightness
    features = Features({"img": Image(), "label": ClassLabel(names=CIFAR10_CLASSES)})
    path = tmp_path_factory.mktemp("cifar10") / "test.parquet"
    Dataset.from_dict({"img": list(images), "label": labels.tolist()}, features=features).to_parquet(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer of 320 tokens, trained on synthetic texts."""
    from llm_unlearn.data.synthetic import synthetic_texts
    from llm_unlearn.models.make import train_tokenizer

    return train_tokenizer(synthetic_texts(60, 0)["text"], 320)


@pytest.fixture
def make_tiny(tokenizer) -> Callable[..., "PreTrainedModel"]:
    """Make a fresh model: `make_tiny("gpt2" | "llama", seed=0, lora=False)`, 2 layers, 16 wide, no dropout."""
    import torch

    from llm_unlearn.models.make import make_model

    def make(architecture: str = "gpt2", seed: int = 0, lora: bool = False) -> "PreTrainedModel":
        model = make_model(ARCHITECTURES[architecture], tokenizer, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(SHARPEN)
        if lora:
            from peft import LoraConfig, get_peft_model

            with torch.random.fork_rng():
                torch.manual_seed(seed + 1)
                model = get_peft_model(
                    model,
                    LoraConfig(
                        r=2,
                        lora_alpha=4,
                        target_modules=LORA_TARGETS[architecture],
                        task_type="CAUSAL_LM",
                        fan_in_fan_out=architecture == "gpt2",
                        init_lora_weights=False,  # else an adapter is the identity and never shows
                    ),
                )
        return model.eval()

    return make


@pytest.fixture
def tiny_gpt2(make_tiny) -> "PreTrainedModel":
    """A fresh tiny GPT-2."""
    return make_tiny("gpt2")
