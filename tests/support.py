"""Tiny models, rows and trainers that tests of the methods share."""

import numpy as np
import torch
from datasets import Dataset

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.reference import REFERENCE_ADAPTER

VOCABULARY = 40
NOISE = {"epsilon": 0.5, "seed": 3}


def rows(n: int, seed: int, noisy: bool = False) -> Dataset:
    """Rows of uneven length; loss on the whole text."""
    generator = np.random.default_rng(seed)
    items = []
    for i in range(n):
        ids = generator.integers(2, VOCABULARY, size=int(generator.integers(4, 11))).tolist()
        items.append({"input_ids": ids, "labels": [-100, *ids[1:]], "noise_id": i if noisy and i % 2 else -1})
    return Dataset.from_list(items)


def build(kind: str) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_layer=2, n_head=2, n_embd=16, n_positions=32, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():  # larger weights than the initialisation's, so that predictions are not uniform
        for parameter in model.parameters():
            parameter.mul_(3.0)
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"],
                                                 task_type="CAUSAL_LM", init_lora_weights=False))
    return model


def trainer(method: str, kind: str, folder, *, model=None, collator=None, forget=None, **options):
    config, cls = METHODS[method]
    options = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 4, "seed": 0, "use_cpu": True,
               "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
               "lr_scheduler_type": "constant", **options}
    model = build(kind) if model is None else model
    inject_gaussian_noise(model, NOISE)
    return cls(model=model, args=config(output_dir=str(folder), **options),
               forget_dataset=rows(6, 1, noisy=True) if forget is None else forget, retain_dataset=rows(10, 2),
               data_collator=collator or CausalLMCollator(0))


def own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if f".{REFERENCE_ADAPTER}." not in n}


def assert_same(ours: dict, theirs: dict, atol: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0.0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
