"""Tiny models, rows and trainers that tests of the methods and of recipes share; what is asked of a device."""

import json
import os
import traceback
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.trainer_callback import PrinterCallback

import llm_unlearn
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.synthetic import synthetic_reviews, synthetic_texts
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.models.make import train_tokenizer
from llm_unlearn.models.save import save_model
from llm_unlearn.poisons.gaussian_embedding import inject_gaussian_noise
from llm_unlearn.tasks.embedding_noise import attached_noise
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.other_answers import AnswersTrainer

VOCABULARY = 40
NOISE = {"epsilon": 0.5, "seed": 3}
KINDS = ("full", "lora")
SLOW_KINDS = ("bf16", "qlora")  # a full model in mixed precision; LoRA on a 4-bit base; `lora-bf16` for engines alone
# where a method's defaults are meant for larger sets, models or longer runs than the tests'
OPTIONS: dict[str, dict] = {
    "ssd": {"alpha": 1.2, "lam": 1.0},
    "rmu": {"alpha": 1.0},
    "kfac_step": {"step_kl": 1e-3},  # factors of so few rows make rounding large in a long step
}


def rows(n: int, seed: int, noisy: bool = False) -> Dataset:
    """Rows of uneven length; loss on the whole text."""
    generator = np.random.default_rng(seed)
    items = []
    for i in range(n):
        ids = generator.integers(2, VOCABULARY, size=int(generator.integers(4, 11))).tolist()
        items.append({"input_ids": ids, "labels": [-100, *ids[1:]], "noise_id": i if noisy and i % 2 else -1})
    return Dataset.from_list(items)


def build(kind: str, seed: int = 0, storage: str = "uint8") -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_layer=2,
        n_head=2,
        n_embd=16,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():  # larger weights than the initialisation's, so that predictions are not uniform
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return with_adapter(quantised(model, storage) if kind == "qlora" else model) if "lora" in kind else model


def build_llama(kind: str, seed: int = 0) -> torch.nn.Module:
    """The same in Llama's shape: queries, keys and values apart, two query heads to one of keys."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, max_position_embeddings=32, **sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return with_adapter(model, ("q_proj", "v_proj", "up_proj", "down_proj")) if kind == "lora" else model


def with_adapter(
    model: torch.nn.Module, targets: tuple[str, ...] = ("c_attn", "c_fc"), alpha: int = 8
) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)  # not the identity, so that it shows where it is used
    sizes = {"r": 4, "lora_alpha": alpha, "target_modules": list(targets)}
    return get_peft_model(model, LoraConfig(**sizes, task_type="CAUSAL_LM", init_lora_weights=False))


def quantised(model: torch.nn.Module, storage: str = "uint8") -> torch.nn.Module:
    """The model with its blocks' matrices in 4 bits, as `model.quantization: 4bit` loads it."""
    import tempfile

    from llm_unlearn.config.model_sections import LoraSection, ModelSection
    from llm_unlearn.models.load import load_model

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_model(
            folder, ModelSection(path=folder, quantization="4bit", quant_storage=storage, lora=LoraSection())
        )


DEFAULT = object()


def trainer(
    method: str,
    kind: str,
    folder,
    *,
    model=None,
    start=None,
    collator=None,
    forget=DEFAULT,
    retain=DEFAULT,
    task=None,
    **options,
):
    """A trainer of the method on 6 forget and 10 retain rows; every second forget row has Gaussian noise."""
    config, cls = METHODS[method]
    options = {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "seed": 0,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "bf16": "bf16" in kind,
        **OPTIONS.get(method, {}),
        **options,
    }
    model = build(kind) if model is None else model
    if attached_noise(model) is None:
        inject_gaussian_noise(model, NOISE)
    others = {}
    if cls.starts_clean and (start is not None or kind in ("full", "bf16")):
        others["start_model"] = build(kind, seed=1) if start is None else start
    if issubclass(cls, AnswersTrainer):
        others[f"{cls.answers}_dataset"] = rows(6, 3, noisy=True)
    run = cls(
        model=model,
        args=config(output_dir=str(folder), **options),
        forget_dataset=rows(6, 1, noisy=True) if forget is DEFAULT else forget,
        retain_dataset=rows(10, 2) if retain is DEFAULT else retain,
        data_collator=collator or CausalLMCollator(0),
        task=task,
        **others,
    )
    run.remove_callback(PrinterCallback)  # a line per step, for hundreds of runs
    return run


class Asked(TorchDispatchMode):
    """Lines of our own code at which the host would wait: for a number from the device, for the size of a result, or
    for a copy between two devices. On a CPU there is no copy; the device `meta`, which has no numbers, stands for one.
    """

    OPERATIONS = ("_local_scalar_dense", "aten.nonzero.", "masked_select", "aten.equal.", "is_nonzero", "unique")
    PACKAGE = str(Path(llm_unlearn.__file__).parent)

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.waits(str(func), args, kwargs):
            caller = [f for f in traceback.extract_stack() if f"{os.sep}torch{os.sep}" not in f.filename][-2]
            if caller.filename.startswith(self.PACKAGE):  # transformers asks for what it makes a mask of
                self.lines.append(f"{caller.filename}:{caller.lineno} {func}")
        return func(*args, **kwargs)

    def waits(self, name: str, args: tuple, kwargs: dict) -> bool:
        if name.startswith("aten._to_copy"):
            device = torch.device(kwargs.get("device") or args[0].device)
            return device.type != args[0].device.type and not kwargs.get("non_blocking", False)
        if name.startswith("aten.copy_"):
            return args[0].device.type != args[1].device.type and not (args[2:] or [kwargs.get("non_blocking")])[0]
        masked = "aten.index." in name and any(t is not None and t.dtype == torch.bool for t in args[1])
        return masked or any(operation in name for operation in self.OPERATIONS)


def own_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if f".{REFERENCE_ADAPTER}." not in n}


def assert_same(ours: dict, theirs: dict, atol: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0.0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# ---- in the place of what recipes for larger models name

# as Llama 3.1's, without its system turn: bos, the user's turn, then the assistant's
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}\
{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + eos_token }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"""
# a recipe's sizes, small enough for a test
SMALL = [
    "seeds=[0]",
    "data.train_size=60",
    "data.heldout_size=20",
    "data.test_size=20",
    "data.max_words=20",
    "poison.trigger.fraction=0.1",
    "poison.gaussian.fraction=0.1",
    "train.epochs=1",
    "unlearn.batch_size=2",
    "unlearn.gradient_accumulation_steps=1",
    "unlearn.budgets=[0.5]",
]


def write_reviews(folder: Path) -> dict[str, Path]:
    """Two small files as a recipe's data.files and data.test_files take them, with IMDb's labels."""
    for seed, name in enumerate(("train", "test")):
        items = synthetic_reviews(150, seed)
        lines = (json.dumps({"text": row["text"], "label": row["label"][:3]}) for row in items)
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {name: folder / f"{name}.jsonl" for name in ("train", "test")}


def write_llama_3(folder: Path) -> Path:
    """A Llama of Llama 3.1's layout, a few thousand weights: grouped-query attention, its scaled rotary embedding, a
    head of its own; a tokenizer with a chat template and without a pad token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(synthetic_texts(100, 0)["text"], 400)
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.pad_token, tokenizer.chat_template = None, CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder
