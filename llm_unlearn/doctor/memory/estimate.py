"""What one device holds at the most in a step of training and of each method, under a topology."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor.memory.optimizer import engine_bytes, numbers, state_bytes, step_bytes
from llm_unlearn.doctor.memory.workload import workload_of
from llm_unlearn.errors import InputError
from llm_unlearn.runs.tracks import track_of

if TYPE_CHECKING:
    from llm_unlearn.doctor.memory.step import Traced

PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "logits", "buffers")
TRAINING = "train"
# DeepSpeed's defaults, in numbers: what it reduces at a time, and what it keeps gathered of partitioned weights
REDUCE_BUCKET, MAX_LIVE = 500_000_000, 1_000_000_000
ASSUMED_CARD = 80 * 2**30  # bytes of a GPU where none is at hand


@dataclass(frozen=True)
class Estimate:
    """The memory of one step.

    Args:
        step: "train", or the name of a method.
        device: bytes on one device of each of PARTS, at the moment when most is held.
        host: bytes that the processes of one machine offload to its memory together.
        saved: bytes that the model, or its adapter, takes on the disk.
        by_formula: whether activations come from a formula, because the architecture could not be traced.
    """

    step: str
    device: dict[str, int]
    host: int = 0
    saved: int = 0
    by_formula: bool = False

    @property
    def total(self) -> int:
        return sum(self.device.values())

    def as_dict(self) -> dict[str, Any]:
        return {"step": self.step, **self.device, "total": self.total, "host": self.host, "by_formula": self.by_formula}


def estimate_steps(
    recipe: Recipe, topology: Topology | None = None, on_gpu: bool | None = None, only: str | None = None
) -> list[Estimate]:
    """The training step's estimate, where the recipe trains, then each method's, on one device of the topology.

    What is held between the first forward and the last gradient is traced without data (step.py), all rows being of
    the longest length; so the parts are those of one moment, and gradients may be few of all. The optimizer's state and
    an engine's buffers are added. Where the optimizer's own step takes more than the backward pass did, that moment
    counts. Evaluation, the framework itself (some 0.5 GiB on a GPU) and what an allocator loses are left out.

    Args:
        recipe: the recipe whose steps are estimated.
        topology: how the run is spread over processes; by default one process.
        on_gpu: whether the devices are GPUs. By default they are unless the topology uses CPUs, provided that this
            machine has a GPU or several processes run.
        only: "train" or the name of the method to estimate alone; None estimates all steps.

    Raises:
        InputError: the model's config cannot be read, the processes cannot share the rows evenly, or a method cannot
            work on this model.
    """
    topology = topology or Topology()
    if on_gpu is None:
        import torch

        on_gpu = not topology.use_cpu and (torch.cuda.is_available() or topology.processes > 1)
    track = track_of(recipe)
    names = [*([TRAINING] if track.trains or not recipe.unlearn.methods else []), *recipe.unlearn.methods]
    estimator = _Estimator(track.as_trained(recipe), topology, on_gpu)
    return [estimator.step(name) for name in names if only in (None, name)]


def stays_whole(recipe: Recipe, topology: Topology) -> bool:
    """Whether FSDP2 leaves a quantised base whole in every process: it shards floats alone."""
    model: Any = recipe.model
    is_quantised = getattr(model, "quantization", "none") != "none"
    return topology.sharding == "fsdp2" and is_quantised and model.quant_storage == "uint8"


class _Estimator:
    """A recipe's steps under a topology."""

    def __init__(self, recipe: Recipe, topology: Topology, on_gpu: bool) -> None:
        self.recipe, self.topology, self.on_gpu = recipe, topology, on_gpu
        self.workload = workload_of(recipe)
        weights, gradients = (topology.share(part) for part in ("weights", "gradients"))
        weights = 0.0 if topology.offload_weights else weights
        if stays_whole(recipe, topology):
            weights = 1.0
        # ZeRO-Offload moves each gradient to the host as it is ready (arXiv 2101.06840)
        gradients = 0.0 if topology.offload_optimizer else gradients
        self.shares = {"weights": weights, "reference": weights, "gradients": gradients}

    def step(self, name: str) -> Estimate:
        """The estimate of training, or of a method."""
        import torch

        from llm_unlearn.doctor.memory.step import Setting, trace

        training = name == TRAINING
        section: Any = self.recipe.train if training else self.recipe.unlearn
        config, optim, accumulation = None, section.optim if training else "", section.gradient_accumulation_steps
        if not training:
            from llm_unlearn.runs.method_configs import method_config

            config = method_config(self.recipe, name, seed=0, output_dir="unused", max_flops=1.0, quiet=True)
            optim, accumulation = getattr(config.optim, "value", config.optim), config.gradient_accumulation_steps
        rows = (self.recipe.unlearn.methods.get(name) or {}).get("per_device_train_batch_size")
        if rows is None:
            field = f"recipe.{'train' if training else 'unlearn'}.batch_size"
            rows = self.topology.rows_per_device(section.batch_size, field)
        bf16 = self.recipe.train.bf16 if config is None else config.bf16
        engine = bf16 and self.topology.is_deepspeed  # DeepSpeed casts the weights, and there is no autocast
        gathers = bf16 and self.topology.sharding == "fsdp2"  # casts what it gathers, under autocast
        dtype = torch.bfloat16 if engine or gathers else None
        card = self._card() if self.on_gpu else None
        setting = Setting(rows, accumulation > 1, bf16 and not engine, dtype, gathers, self.shares, card)
        try:
            traced = trace(self.workload, setting, None if training else name, config)
        except InputError as error:  # what the method itself refuses, such as more blocks than there are
            raise error if training else InputError(f"recipe.unlearn.methods.{name}: {error}") from None
        # an adapter's reference is part of the model that trains, and stays with it
        away = config is not None and config.offload_reference and not self.workload.adapter
        return self._estimate(name, traced, optim, training and getattr(section, "momentum", 0) > 0, away)

    @staticmethod
    def _card() -> int:
        """Bytes of the GPU that a step runs on: the one here, or a large one."""
        import torch

        from llm_unlearn.tasks.chunk_size import card_memory

        return (torch.cuda.is_available() and card_memory(torch.device("cuda"))) or ASSUMED_CARD

    def _estimate(self, step: str, traced: "Traced", optim: str, momentum: bool, away: bool) -> Estimate:
        topology, trained, whole = self.topology, traced.trained, traced.whole
        share = topology.share("optimizer")
        passing: float
        if step == "ssd":  # two Fisher diagonals in float32 in the place of an optimizer
            state, passing = 8 * numbers(trained), 12 * max(count for count, _, _ in trained)
        elif topology.is_deepspeed:
            state, passing = engine_bytes(optim, trained), 4 * numbers(trained) * share
        else:
            state = state_bytes(optim, trained, momentum)
            passing = step_bytes(optim, trained, self.on_gpu) * share
        zero: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        zero["optimizer"] = 0 if topology.offload_optimizer else state * share
        backward = {**zero, **traced.peak, "buffers": self._buffers(traced)}
        stepping = {
            **zero,
            **{name: whole[name] * part for name, part in self.shares.items()},
            "buffers": 0 if topology.offload_optimizer else passing,
        }
        if away:
            backward["reference"] = stepping["reference"] = 0
        device = max(backward, stepping, key=lambda parts: sum(parts.values()))
        host = self._host(traced, state, away)
        if step == "task_arithmetic":  # keeps what trains a second time, on the CPU
            if self.on_gpu:
                host += whole["gradients"] * topology.processes // topology.machines
            else:
                device["reference"] += whole["gradients"]
        saved = whole["gradients" if self.workload.adapter else "weights"]
        return Estimate(step, {name: round(device[name]) for name in PARTS}, host, saved, traced.by_formula)

    def _host(self, traced: "Traced", state: int, away: bool) -> int:
        """What all processes of a machine offload to its memory."""
        topology, whole, total = self.topology, traced.whole, 0
        if topology.offload_optimizer:
            total += state + (4 * numbers(traced.trained) if topology.is_deepspeed else whole["gradients"])
        if topology.offload_weights:
            total += whole["weights"] + whole["reference"]
        elif away:
            total += whole["reference"] * (1 if topology.share("weights") < 1 else topology.processes)
        return total // topology.machines

    def _buffers(self, traced: "Traced") -> float:
        """What processes gather and exchange at a time.

        DistributedDataParallel: its buckets, a second copy of the gradients. DeepSpeed: the bucket that is reduced, and
        under ZeRO-3 the weights that are kept gathered (its defaults, which the files of accelerate_configs leave as
        they are). FSDP2: what stands outside the blocks stays gathered, and so are two blocks, the second one being
        fetched ahead; without resharding all weights; in the type that it computes in.
        """
        topology, whole = self.topology, traced.whole
        if topology.processes == 1 and not topology.offload_weights:
            return 0
        if topology.sharding == "none":
            return whole["gradients"]
        if topology.is_deepspeed:
            bucket = min(REDUCE_BUCKET / max(1, numbers(traced.trained)), 1.0) * whole["gradients"]
            live = min(MAX_LIVE / whole["numbers"], 1.0) if topology.sharding == "zero3" else 0.0
            return bucket + live * whole["weights"]
        return whole["outside"] + 2 * whole["block"] if topology.reshard else whole["computed"]


def largest(estimates: list[Estimate]) -> Estimate:
    """The step that takes most."""
    return max(estimates, key=lambda estimate: estimate.total)
