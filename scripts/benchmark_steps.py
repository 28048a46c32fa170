"""The contenders of scripts/benchmark.py: steps of this toolkit, of TRL, and naive ones as in other toolkits.

A contender is built from a `Setting`, then called once per round. A call takes one training step (forward, backward,
AdamW, zero_grad) on each of the contender's batches, which exist before the clock starts.
"""

import llm_unlearn.vision  # noqa: F401  before transformers, see vision/torchvision_guard.py

# isort: split
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from measure_memory import tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, Trainer

from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.models.make import make_config
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.other_answers import AnswersTrainer

GPT2 = {"model_type": "gpt2", "n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {"model_type": "llama", "max_position_embeddings": 512}
# shape → (architecture, vocabulary); weights are random
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": ({**GPT2, "n_layer": 4, "n_head": 4, "n_embd": 256}, 32_768),
    "llama": (
        {
            **LLAMA,
            "num_hidden_layers": 4,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 688,
            "tie_word_embeddings": False,
        },
        32_000,
    ),
    "gpt2-medium": ({**GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024}, 50_257),
    "llama-1b": (
        {
            **LLAMA,
            "num_hidden_layers": 16,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "tie_word_embeddings": True,
        },
        128_256,
    ),
    "llama-8b": (
        {
            **LLAMA,
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14_336,
            "tie_word_embeddings": False,
        },
        128_256,
    ),
}
TINY = {
    "gpt2": {**GPT2, "n_layer": 2, "n_head": 2, "n_embd": 16},
    "llama": {
        **LLAMA,
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "tie_word_embeddings": False,
    },
}
LORA_TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],  # c_proj is attention's and the MLP's
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


@dataclass(frozen=True)
class Setting:
    """The model, rows and device that all contenders of a group share.

    Args:
        shape: a key of SHAPES.
        adapter: "full" or "lora".
        rows: "text" (256 tokens, loss on all), "long" (half as many rows of 512), "completion" (256 tokens and a label,
            loss on the label), "lengths" (32 to 512 tokens, log-normal, loss on all), "canaries" (as "text").
        sets: how many sets of rows plain fine-tuning takes: 2 if the methods take forget and retain rows.
        device: "cpu" or "cuda".
        bf16: autocast; the frozen base of a Llama's adapter is then bfloat16, and weights that train are float32.
        tiny: a toy model and short rows, for tests.
        checkpointing: compute activations again in the backward pass.
    """

    shape: str = "gpt2"
    adapter: str = "full"
    rows: str = "text"
    sets: int = 2
    device: str = "cpu"
    bf16: bool = False
    tiny: bool = False
    checkpointing: bool = False

    @property
    def batch(self) -> int:
        """Rows of one set in a batch."""
        return 2 if self.tiny else 4 if self.rows == "long" else 8

    @property
    def batches(self) -> int:
        """Batches of a round."""
        return {"lengths": 3, "canaries": 2}.get(self.rows, 1)

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        fields, _ = self.architecture
        return fields["n_layer"] if fields["model_type"] == "gpt2" else fields["num_hidden_layers"]

    @property
    def architecture(self) -> tuple[dict[str, Any], int]:
        """Config fields and vocabulary size."""
        fields, vocabulary = SHAPES[self.shape]
        return (TINY[fields["model_type"]], 96) if self.tiny else (fields, vocabulary)


def rows_of(setting: Setting, count: int, seed: int) -> Dataset:
    """Tokenised rows of random tokens."""
    generator, vocabulary = np.random.default_rng(seed), setting.architecture[1]
    short, usual, longest = (2, 16, 32) if setting.tiny else (32, 256, 512)
    usual = longest if setting.rows == "long" else usual
    items = []
    for i in range(count):
        length = usual + (setting.rows == "completion")
        if setting.rows == "lengths":
            length = int(np.clip(generator.lognormal(np.log(usual / 2), 0.8), short, longest))
        ids = generator.integers(2, vocabulary, size=length).tolist()
        labels = [-100] * usual + ids[-1:] if setting.rows == "completion" else ids
        items.append({"input_ids": ids, "labels": labels, "example_id": i})
    return Dataset.from_list(items)


def sizes_of(rows: Dataset) -> tuple[int, int]:
    """(tokens, supervised positions) of all rows."""
    tokens, positions = CausalLMTask().sizes(rows)
    return int(tokens.sum()), int(positions.sum())


def model_of(setting: Setting, dtype: torch.dtype | None = None) -> Any:  # a PreTrainedModel or PeftModel
    """A model with random weights, the same for every contender; under LoRA (r = 16) in an adapter."""
    fields, vocabulary = setting.architecture
    if dtype is None:
        frozen = setting.bf16 and fields["model_type"] == "llama" and setting.adapter == "lora"
        dtype = torch.bfloat16 if frozen else torch.float32
    torch.manual_seed(0)
    with torch.device(setting.device):
        model = AutoModelForCausalLM.from_config(make_config(fields, vocabulary), dtype=dtype)
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if setting.adapter == "full":
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=16,
            target_modules=LORA_TARGETS[fields["model_type"]],
            fan_in_fan_out=fields["model_type"] == "gpt2",
            task_type="CAUSAL_LM",
        ),
    )


def arguments(config: type, setting: Setting, folder: str, **options: Any) -> Any:
    """A Trainer's config for measuring steps: no reports, no files, a learning rate at which no model breaks down."""
    return config(
        output_dir=folder,
        learning_rate=1e-6,
        bf16=setting.bf16,
        use_cpu=setting.device == "cpu",
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **options,
    )


class Steps:
    """Training steps of a trainer, one on each batch per call.

    Args:
        trainer: of this toolkit, TRL or transformers.
        batches: the batches of a round.
        tokens: tokens of a round without padding.
        flops: FLOPs of a round without padding.
        update: whether the optimizer steps.
    """

    def __init__(self, trainer: Trainer, batches: list[Any], tokens: int, flops: float, update: bool = True) -> None:
        self.trainer, self.batches, self.tokens, self.flops = trainer, batches, tokens, flops
        self.count = len(batches)
        self.trainer.current_gradient_accumulation_steps = 1  # as the Trainer's own loop sets it
        self.optimizer = trainer.create_optimizer() if update else None
        self.model = trainer.accelerator.prepare_model(trainer.model)  # adds autocast

    def __call__(self) -> None:
        for batch in self.batches:
            self.trainer.training_step(self.model, batch)
            if self.optimizer is not None:
                self.optimizer.step()
            self.model.zero_grad()


class Scores:
    """`gaussian_scores` of canaries, once per call; arguments as in `Steps`."""

    optimizer = None

    def __init__(self, model: nn.Module, rows: list[dict], batch: int, flops: float) -> None:
        self.model, self.rows, self.batch, self.flops = model, rows, batch, flops
        self.tokens = sum(len(row["input_ids"]) for row in rows)
        self.count = -(-len(rows) // batch)

    def __call__(self) -> None:
        gaussian_scores(self.model, self.rows, CausalLMCollator(0), [0], self.batch)


# ---- this toolkit, and TRL


def method_steps(setting: Setting, folder: str, method: str, update: bool = True, padded: bool = False) -> Steps:
    """Steps of a method's trainer; `gradient_descent` is plain fine-tuning, `padded` turns packing off."""
    config, trainer_class = METHODS[method]
    model = model_of(setting)
    size = setting.batch * (setting.sets if method == "gradient_descent" else 1)
    count = size * setting.batches
    options = {"layer": round(setting.layers / 3)} if method == "rmu" else {}
    steps = 2 if method == "scrub" else setting.batches  # a min and a max step
    others: dict[str, Any] = {"task": CausalLMTask(pack=False)} if padded else {}
    if issubclass(trainer_class, AnswersTrainer):
        others[f"{trainer_class.answers}_dataset"] = rows_of(setting, count, seed=3)
    trainer = trainer_class(
        model=model,
        data_collator=CausalLMCollator(0),
        forget_dataset=rows_of(setting, count, seed=1),
        retain_dataset=rows_of(setting, count, seed=2),
        **others,
        args=arguments(config, setting, folder, per_device_train_batch_size=size, max_steps=steps, **options),
    )
    flops, tokens = (sum(costs) for costs in zip(*trainer.plan.costs, strict=True))
    return Steps(trainer, list(trainer.get_train_dataloader()), tokens, flops, update)


def sft_steps(setting: Setting, folder: str) -> Steps:
    """Steps of TRL's SFTTrainer with its own loss, on the rows of plain fine-tuning."""
    from trl import SFTConfig, SFTTrainer

    size, model = setting.batch * setting.sets, model_of(setting)
    rows, counter = rows_of(setting, size * setting.batches, seed=2), FlopCounter.of(model)
    args = arguments(
        SFTConfig,
        setting,
        folder,
        per_device_train_batch_size=size,
        max_length=None,
        packing=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=rows, data_collator=CausalLMCollator(0), processing_class=tokenizer()
    )
    tokens, positions = sizes_of(rows)
    return Steps(trainer, list(trainer.get_train_dataloader()), tokens, counter.training(tokens, positions))


def scores(setting: Setting, folder: str, times: int = 1) -> Scores:
    """`gaussian_scores` on `times` as many canaries as fine-tuning has rows; bfloat16 under bf16, as in fine-tuning."""
    model = model_of(setting, torch.bfloat16 if setting.bf16 else torch.float32)
    rows, counter = rows_of(setting, times * setting.batch * setting.batches, seed=2), FlopCounter.of(model)
    return Scores(model, list(rows), setting.batch, 2 * counter.forward(*sizes_of(rows)))


# ---- the step of other toolkits


def whole_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(B, T, V): logits at every position."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits


def naive_nll(model: nn.Module, batch: dict[str, Tensor], mean: bool = True) -> Tensor:
    """(B,) each row's mean (or sum) of −log p over its labels."""
    logits, targets = whole_logits(model, batch)[:, :-1].float(), batch["labels"][:, 1:]
    values = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    sums = values.view_as(targets).sum(-1)
    return sums / (targets != -100).sum(-1) if mean else sums


def naive_kl(model: nn.Module, reference: nn.Module, forget: dict, retain: dict, args: Any) -> Tensor:
    """−ℓ(f) + α KL(p_θ0 ‖ p_θ) on r."""
    forget_nll = naive_nll(model, forget).mean()
    with torch.no_grad():
        log_reference = F.log_softmax(whole_logits(reference, retain).float(), dim=-1)
    log_model = F.log_softmax(whole_logits(model, retain).float(), dim=-1)
    divergence = F.kl_div(log_model, log_reference, reduction="none", log_target=True).sum(-1)[:, :-1]  # (B, T − 1)
    labelled = retain["labels"][:, 1:] != -100
    return args.alpha * ((divergence * labelled).sum(-1) / labelled.sum(-1)).mean() - forget_nll


def naive_npo(model: nn.Module, reference: nn.Module, forget: dict, retain: dict, args: Any) -> Tensor:
    """−(2/β) E log σ(−β log π_θ/π_θ0) on f + α ℓ(r); the reference runs in every step."""
    with torch.no_grad():
        reference_nll = naive_nll(reference, forget, mean=False)
    log_ratio = reference_nll - naive_nll(model, forget, mean=False)
    return -2 / args.beta * F.logsigmoid(-args.beta * log_ratio).mean() + args.alpha * naive_nll(model, retain).mean()


class NaiveTrainer(Trainer):
    """Logits at every position, forget and retain rows in separate forwards, a deep copy of the model as reference."""

    def __init__(self, model: nn.Module, args: Any, loss: Callable[..., Tensor]) -> None:
        super().__init__(model=model, args=args)
        self.loss = loss
        self.reference = self.accelerator.prepare_model(copy.deepcopy(model).eval(), evaluation_mode=True)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.loss(model, self.reference, inputs["forget"], inputs["retain"], self.args)


def right_padded(rows: Dataset, device: str) -> dict[str, Tensor]:
    """One batch of rows, padded to the longest."""
    columns = {
        "input_ids": rows["input_ids"],
        "attention_mask": [[1] * len(ids) for ids in rows["input_ids"]],
        "labels": rows["labels"],
    }
    return {
        name: pad_sequence(
            [torch.tensor(row) for row in column], batch_first=True, padding_value=-100 if name == "labels" else 0
        ).to(device)
        for name, column in columns.items()
    }


def naive_steps(setting: Setting, folder: str, method: str, loss: Callable[..., Tensor]) -> Steps:
    """A naive step on the rows of `method_steps`."""
    model, counted_twice = model_of(setting), "retain" if method == "kl" else "forget"  # where the reference runs
    rows = {"forget": rows_of(setting, setting.batch, seed=1), "retain": rows_of(setting, setting.batch, seed=2)}
    counter, sizes = FlopCounter.of(model), {name: sizes_of(part) for name, part in rows.items()}
    flops = sum(counter.training(*size) for size in sizes.values()) + counter.forward(*sizes[counted_twice])
    trainer = NaiveTrainer(model, arguments(METHODS[method][0], setting, folder), loss)
    batch = {name: right_padded(part, setting.device) for name, part in rows.items()}
    return Steps(trainer, [batch], sum(tokens for tokens, _ in sizes.values()), flops)


# name → (setting, folder for files) → a contender, which a round calls
CONTENDERS: dict[str, Callable[[Setting, str], Steps | Scores]] = {
    **{
        method: partial(method_steps, method=method)
        for method in (
            "gradient_ascent",
            "grad_diff",
            "neggrad_plus",
            "simnpo",
            "wga",
            "satimp",
            "npo",
            "dpo",
            "kl",
            "scrub",
            "rmu",
        )
    },
    "fine_tuning": partial(method_steps, method="gradient_descent"),
    "sft": sft_steps,
    "grad_diff_padded": partial(method_steps, method="grad_diff", padded=True),
    "naive_kl": partial(naive_steps, method="kl", loss=naive_kl),
    "naive_npo": partial(naive_steps, method="npo", loss=naive_npo),
    "forward_backward": partial(method_steps, method="gradient_descent", update=False),
    "gaussian_scores": scores,
    "gaussian_scores_4n": partial(scores, times=4),
}
