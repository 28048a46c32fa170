"""What one device holds at the most in a step of training and of each method, under a topology."""

from dataclasses import dataclass
from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor.memory.completions import completion_positions
from llm_unlearn.doctor.memory.formula import Formula
from llm_unlearn.doctor.memory.optimizer import engine_bytes, state_bytes, step_bytes
from llm_unlearn.doctor.memory.steps import MethodStep, Setting, TrainingStep
from llm_unlearn.doctor.memory.trace import Traced, trace
from llm_unlearn.errors import InputError

PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "logits", "buffers")
TRAINING = "train"
SETS = ("train", "forget", "retain", "refusal")
# DeepSpeed's defaults, in numbers: what it reduces at a time, and what it keeps gathered of partitioned weights
REDUCE_BUCKET, MAX_LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Estimate:
    """The memory of one step.

    Args:
        step: "train", or a method. device: bytes on one device of each of PARTS, at the moment when most is held.
            host: bytes in the memory of one machine that its processes offload there together. saved: bytes that the
            model, or its adapter, takes on the disk. by_formula: the architecture could not be traced, so activations
            and logits are by a formula (see formula.py).
    """

    step: str
    device: dict[str, int]
    host: int = 0
    saved: int = 0
    by_formula: bool = False

    @property
    def total(self) -> int:
        return sum(self.device.values())


def estimate_steps(
    recipe: Recipe, topology: Topology | None = None, on_gpu: bool | None = None, only: str | None = None
) -> list[Estimate]:
    """The training step's estimate, then each method's, on one device of the topology.

    What is held between the first forward and the last gradient is traced without data (see steps.py), all rows being
    of the longest length; so the parts are those of one moment, and gradients may be few of all. Added to it is what
    the trace does not see: the optimizer's state, and an engine's buffers. Where the optimizer's own step takes more
    than the backward pass did, that moment counts. Evaluation, the framework itself (some 0.5 GiB on a GPU) and what an
    allocator loses are left out.

    Args:
        topology: by default one process. on_gpu: whether the device is a GPU; by default whether there is one.
            only: one step alone.
    Raises:
        InputError: the model's config cannot be read, the processes cannot share the rows evenly, or a method cannot
            work on this model.
    """
    topology = topology or Topology()
    if on_gpu is None:
        import torch

        on_gpu = not topology.use_cpu and (torch.cuda.is_available() or topology.processes > 1)
    subject = _Subject(recipe, topology, on_gpu)
    steps = [name for name in (TRAINING, *recipe.unlearn.methods) if only in (None, name)]
    return [subject.training() if name == TRAINING else subject.method(name) for name in steps]


class _Subject:
    """A recipe's model under a topology, whose steps are traced."""

    def __init__(self, recipe: Recipe, topology: Topology, on_gpu: bool) -> None:
        self.recipe, self.topology, self.on_gpu = recipe, topology, on_gpu
        self.shares = {name: topology.share(name) for name in ("weights", "gradients")}
        self.shares["reference"] = topology.share("weights")
        if topology.offload_weights:
            self.shares["weights"] = self.shares["reference"] = 0.0
        if topology.offload_optimizer:
            self.shares["gradients"] = 0.0  # ZeRO-Offload moves each to the host as it is ready (arXiv 2101.06840)
        self.bf16 = recipe.train.bf16
        self.in_engine = self.bf16 and topology.is_deepspeed  # DeepSpeed casts the weights, and there is no autocast
        self._make_task()

    def _make_task(self) -> None:
        import torch

        dtype = torch.bfloat16 if self.in_engine else None
        if self.recipe.track == "vision":
            from llm_unlearn.doctor.memory.images import image_model, image_task
            from llm_unlearn.vision.recipe_model import describe_model

            config = describe_model(self.recipe)
            self.build, self.depth = lambda with_reference, blocks: image_model(config, dtype), 0
            self.task, self.vocabulary, self.positions = image_task(config), config.num_labels, dict.fromkeys(SETS, 1)
            self.formula = None
            return
        from llm_unlearn.doctor.memory.dataless import DatalessTexts, text_model
        from llm_unlearn.models.load import read_config

        data, section = self.recipe.data, self.recipe.model
        config = read_config(section).get_text_config()
        self.build = lambda with_reference, blocks: text_model(section, with_reference, blocks, dtype)
        self.task, self.vocabulary, self.depth = (
            DatalessTexts(data.max_length),
            config.vocab_size,
            config.num_hidden_layers,
        )
        size = 2 if self.bf16 or section.dtype != "float32" else 4
        self.formula = Formula(config.hidden_size, data.max_length, size, section.gradient_checkpointing)
        text, completion = data.max_length - 1, completion_positions(self.recipe)
        self.positions = dict.fromkeys(SETS, text if data.loss_on == "text" else completion)
        self.completion = completion

    def setting(self, rows: int, accumulation: int, positions: dict[str, int] | None = None) -> Setting:
        return Setting(
            build=self.build,
            task=self.task,
            depth=self.depth,
            positions=positions or self.positions,
            rows=rows,
            accumulates=accumulation > 1,
            autocast=self.bf16 and not self.in_engine,
            vocabulary=self.vocabulary,
            shares=self.shares,
            formula=self.formula,
        )

    def training(self) -> Estimate:
        section = self.recipe.train
        rows = self.topology.rows_per_device(section.batch_size, "recipe.train.batch_size")
        setting = self.setting(rows, section.gradient_accumulation_steps)
        traced = trace(TrainingStep(setting), setting)
        return self._estimate(TRAINING, traced, section.optim, getattr(section, "momentum", 0) > 0)

    def method(self, name: str) -> Estimate:
        from llm_unlearn.runs.method_configs import method_config
        from llm_unlearn.trainers import METHODS

        config = method_config(self.recipe, name, seed=0, output_dir="unused", max_flops=1.0, quiet=True)
        if "per_device_train_batch_size" in (self.recipe.unlearn.methods[name] or {}):
            rows = config.per_device_train_batch_size
        else:
            rows = self.topology.rows_per_device(self.recipe.unlearn.batch_size, "recipe.unlearn.batch_size")
        positions = dict(self.positions)
        if name == "dpo":  # its loss on forget rows and refusals is on completions, whatever loss_on
            longest = max(len(text.encode()) for text in config.refusals) + 1
            positions |= {"forget": self.completion, "refusal": min(longest, self.recipe.data.max_length - 1)}
        setting = self.setting(rows, config.gradient_accumulation_steps, positions)
        try:
            traced = trace(MethodStep(setting, METHODS[name][1], config, self._sizes()), setting)
        except InputError as error:  # what the method itself refuses, such as more blocks than there are
            raise InputError(f"recipe.unlearn.methods.{name}: {error}") from None
        # an adapter's reference is part of the model that trains, and stays with it
        away = config.offload_reference and not (self.recipe.track == "language" and self.recipe.model.lora)
        return self._estimate(name, traced, getattr(config.optim, "value", config.optim), away=away)

    def _sizes(self) -> dict[str, int]:
        forget = self.recipe.forget_count() or 1
        return {"forget": forget, "refusal": forget, "retain": max(1, self.recipe.data.train_size - forget)}

    def _estimate(self, step: str, traced: Traced, optim: str, momentum: bool = False, away: bool = False) -> Estimate:
        topology, numbers = self.topology, sum(count for count, _, _ in traced.trained)
        if step == "ssd":
            state = 2 * 4 * numbers  # two Fisher diagonals in float32 in the place of an optimizer
            passing = 3 * 4 * max(count for count, _, _ in traced.trained)
        elif topology.is_deepspeed:
            state, passing = engine_bytes(optim, traced.trained), round(4 * numbers * topology.share("optimizer"))
        else:
            state, passing = (
                state_bytes(optim, traced.trained, momentum),
                step_bytes(optim, traced.trained, self.on_gpu),
            )
            passing = round(passing * topology.share("optimizer"))
        state_here = 0 if topology.offload_optimizer else round(state * topology.share("optimizer"))
        shared = {
            name: round(getattr(traced, name) * self.shares[name]) for name in ("weights", "gradients", "reference")
        }
        backward = {**dict.fromkeys(PARTS, 0), **traced.peak, "optimizer": state_here, "buffers": self._buffers(traced)}
        stepping = {
            **dict.fromkeys(PARTS, 0),
            **shared,
            "optimizer": state_here,
            "buffers": 0 if topology.offload_optimizer else passing,
        }
        if away:
            backward["reference"] = stepping["reference"] = 0
        device = max(backward, stepping, key=lambda parts: sum(parts.values()))
        host = self._host(traced, state, away)
        if step == "task_arithmetic":  # keeps what trains a second time, on the CPU
            if self.on_gpu:
                host += traced.gradients * topology.processes // topology.machines
            else:
                device["reference"] += traced.gradients
        adapter = self.recipe.track == "language" and self.recipe.model.lora
        return Estimate(
            step,
            {name: int(device[name]) for name in PARTS},
            int(host),
            traced.gradients if adapter else traced.weights,
            traced.by_formula,
        )

    def _host(self, traced: Traced, state: int, away: bool) -> int:
        """What is offloaded to a machine's memory by all of its processes."""
        topology, total = self.topology, 0
        if topology.offload_optimizer:
            total += state + (
                4 * sum(count for count, _, _ in traced.trained) if topology.is_deepspeed else traced.gradients
            )
        if topology.offload_weights:
            total += traced.weights + traced.reference
        elif away:
            total += traced.reference * (1 if topology.share("weights") < 1 else topology.processes)
        return total // topology.machines

    def _buffers(self, traced: Traced) -> int:
        """What processes gather and exchange at a time.

        DistributedDataParallel: its buckets, a second copy of the gradients. DeepSpeed: the bucket that is reduced, and
        under ZeRO-3 the weights that are kept gathered (its defaults, which the files of accelerate_configs leave as
        they are). FSDP2: what stands outside the blocks stays gathered, and so are two blocks, the second one being
        fetched ahead; without resharding all weights; in the type of the autocast.
        """
        topology = self.topology
        if topology.processes == 1 and not topology.offload_weights:
            return 0
        if topology.sharding == "none":
            return traced.gradients
        bucket = min(REDUCE_BUCKET / max(1, sum(n for n, _, _ in traced.trained)), 1.0) * traced.gradients
        if topology.sharding in ("zero1", "zero2"):
            return round(bucket)
        if topology.sharding == "zero3":
            return round(bucket + traced.weights * min(MAX_LIVE / traced.numbers, 1.0))
        size = 0.5 if self.bf16 and traced.weights >= 4 * traced.numbers else 1.0  # of weights in float32
        gathered = traced.weights if not topology.reshard else traced.outside_blocks + 2 * traced.block
        return round(gathered * size)


def largest(estimates: list[Estimate]) -> Estimate:
    """The step that takes most."""
    return max(estimates, key=lambda estimate: estimate.total)


def as_dict(estimate: Estimate) -> dict[str, Any]:
    return {
        "step": estimate.step,
        **estimate.device,
        "total": estimate.total,
        "host": estimate.host,
        "by_formula": estimate.by_formula,
    }
