"""The sections of a recipe that say which model is trained: fields, types, bounds, defaults and meanings."""

from typing import Any, Literal

from pydantic import Field

from llm_unlearn.config.fields import BatchSize, Count, Epochs, LearningRate, Length, Section, Size, Table, require


class LoraSection(Section):
    """Low-rank adapters (peft)."""

    r: Size = 16
    """rank of an adapter"""
    alpha: Count = 32
    """an adapter's output is scaled by alpha / r"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of an adapter's input that is dropped in training"""
    target_modules: list[str] | None = Field(default=None, min_length=1)
    """names of the layers that get an adapter; null: peft's choice, or else all linear ones and experts"""


class ModelSection(Section):
    """The base model: a hub id or a folder, or (path: null) a small one made from `architecture` and pre-trained."""

    path: str | None = None
    """hub id or folder; null: made from `architecture`"""
    revision: str | None = None
    """branch, tag or commit of the hub id"""
    architecture: Table[Any] | None = None
    """model_type and fields of its transformers config, e.g. {model_type: gpt2, n_layer: 2}; needs `pretrain`"""
    vocab_size: Count = 2048
    """tokens of the tokenizer that is trained for a base from `architecture`"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the weights as they are loaded; those that train are then kept in float32"""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """of the base's linear layers, by bitsandbytes (4bit: nf4, double quantisation); needs `lora`"""
    quant_storage: Literal["uint8", "float32", "bfloat16"] = "uint8"
    """the type that the bytes of 4-bit weights are kept as, which changes no number; FSDP2 shards them as floats alone:
    bfloat16 with `train.bf16`, otherwise either"""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "varlen"] | None = None
    """the kernel of attention; null: transformers' choice, sdpa for most; flash_attention and varlen (torch's own) take
    packed rows without a mask or padding, need a GPU and 16 bits (docs/scaling.md)"""
    lora: LoraSection | None = None
    """train adapters alone; null: all weights"""
    gradient_checkpointing: bool = False
    """compute activations twice instead of keeping them"""
    offload_activations: bool = False
    """keep what `gradient_checkpointing` does keep, the input of each block, in the host's memory; slower"""
    use_liger_kernel: bool = False
    """train with Liger's RMSNorm, RoPE and SwiGLU, on a GPU; needs `liger-kernel`"""
    trust_remote_code: bool = False
    """run code that comes with the model, and load weights other than safetensors"""

    @property
    def computes_in_16_bits(self) -> bool:
        """Whether its attention has no other precision."""
        return self.attn_implementation not in (None, "eager", "sdpa")

    def check_rules(self) -> None:
        require(
            self.gradient_checkpointing or not self.offload_activations,
            "offload_activations",
            "offloads what gradient_checkpointing keeps; set model.gradient_checkpointing: true",
        )
        require(
            not self.computes_in_16_bits or self.dtype != "float32",
            "dtype",
            f"float32, but {self.attn_implementation} computes in 16 bits alone; set bfloat16, or "
            "attn_implementation: sdpa",
        )


class PretrainSection(Section):
    """Pre-training of a base made from `model.architecture` on unlabelled text: AdamW, cosine schedule, one base for
    all seeds.
    """

    texts: Count = 8000
    """how many texts, or all where there are fewer"""
    max_length: Length = 112
    """tokens of a text, its EOS included; a longer text is cut at its end"""
    epochs: Epochs = 3.0
    """passes over the texts"""
    learning_rate: LearningRate = 1e-3
    """at its highest"""
    batch_size: BatchSize = 32
    """texts in one step, over all processes"""
    cache_dir: str | None = None
    """where the base is kept and shared between runs; null: in the run directory"""
