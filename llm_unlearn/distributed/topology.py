"""How a run is spread over devices, as an `accelerate` config file says: the processes and what they shard.

    topology = read_topology("accelerate_configs/zero3.yaml")      # Topology(processes=8, sharding="zero3", …)
    topology.rows_per_device(16, "recipe.train.batch_size")      # 2

This module imports nothing heavy, since the launcher reads it before it starts a process.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_unlearn.config.strict import parse_json, read_yaml
from llm_unlearn.errors import InputError

Sharding = Literal["none", "zero1", "zero2", "zero3", "fsdp2"]


@dataclass(frozen=True)
class Topology:
    """Where a step runs.

    Args:
        processes: number of processes over all machines, one device each.
        machines: number of machines.
        sharding: what the processes shard: nothing (DistributedDataParallel), the optimizer's state (`zero1`), also
            gradients (`zero2`), also weights (`zero3`, `fsdp2`).
        offload_optimizer: the optimizer's state is in the host's memory.
        offload_weights: the weights are in the host's memory.
        reshard: weights gathered for a block's forward are freed until its backward.
        use_cpu: the devices are CPUs.
    """

    processes: int = 1
    machines: int = 1
    sharding: Sharding = "none"
    offload_optimizer: bool = False
    offload_weights: bool = False
    reshard: bool = True
    use_cpu: bool = False

    @property
    def engine(self) -> str | None:
        """The engine that shards the model, as methods name it: deepspeed, fsdp, or None."""
        return "deepspeed" if self.is_deepspeed else "fsdp" if self.sharding == "fsdp2" else None

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed's ZeRO shards anything."""
        return self.sharding.startswith("zero")

    def share(self, part: Literal["weights", "gradients", "optimizer"]) -> float:
        """The share of all weights, gradients or optimizer state in one process, in (0, 1].

        ZeRO: Rajbhandari et al. 2020 (arXiv 1910.02054), figure 1.
        """
        sharded_from = {"optimizer": 1, "gradients": 2, "weights": 3}[part]
        stage = {"none": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}[self.sharding]
        return 1 / self.processes if stage >= sharded_from else 1.0

    def rows_per_device(self, rows: int, field: str) -> int:
        """Rows of a step that one process sees.

        Args:
            rows: rows of a step over all processes.
            field: the field with that number, for error messages.

        Raises:
            InputError: the processes cannot share the rows evenly.
        """
        if rows % self.processes:
            near = max(self.processes, round(rows / self.processes) * self.processes)
            raise InputError(
                f"{field}: {rows} rows cannot be shared evenly by {self.processes} processes; take a "
                f"multiple of {self.processes}, such as {near}"
            )
        return rows // self.processes


def read_topology(path: str | Path | None) -> Topology:
    """The topology of an `accelerate` config file (YAML); for None, a single process.

    Raises:
        InputError: the file or its DeepSpeed file is missing or malformed, or describes an unsupported topology.
    """
    if path is None:
        return Topology()
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: an accelerate config is a mapping; this file holds {type(config).__name__}")
    kind = str(config.get("distributed_type", "NO")).upper()
    common: dict[str, Any] = {
        "processes": 1 if kind == "NO" else _count(config, "num_processes", path),
        "machines": _count(config, "num_machines", path),
        "use_cpu": bool(config.get("use_cpu", False)),
    }
    if kind in ("NO", "MULTI_GPU"):
        return Topology(**common)
    if kind == "DEEPSPEED":
        return Topology(**common, **_deepspeed(config, path))
    if kind == "FSDP":
        return Topology(**common, **_fsdp(config, path))
    if kind == "MULTI_CPU":
        raise InputError(
            f"{path}: distributed_type: MULTI_CPU starts only one process; for several on a CPU write "
            "MULTI_GPU with use_cpu: true, as accelerate_configs/cpu_ddp.yaml does"
        )
    raise InputError(f"{path}: distributed_type: '{kind}' is none of NO, MULTI_GPU, DEEPSPEED, FSDP")


def deepspeed_file(path: str | Path) -> Path | None:
    """The DeepSpeed file that an `accelerate` config names, as a path from here; None if it names none."""
    name = _section(read_yaml(path), "deepspeed_config", path).get("deepspeed_config_file")
    return None if name is None else _beside(path, str(name))


def _count(config: dict[str, Any], name: str, path: str | Path) -> int:
    """A field that is a whole number of at least 1."""
    value = config.get(name, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: {name}: must be a whole number of at least 1, is {value!r}")
    return value


def _section(config: dict[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    """A field that is a mapping; empty if missing."""
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise InputError(f"{path}: {name}: expected a section with fields, found {section!r}")
    return section


def _deepspeed(config: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The ZeRO stage and the offloading, from a DeepSpeed file or from accelerate's own fields."""
    section = _section(config, "deepspeed_config", path)
    name = section.get("deepspeed_config_file")
    if name is None:
        stage = section.get("zero_stage", 2)  # accelerate's default
        devices = [section.get(f"offload_{part}_device") for part in ("optimizer", "param")]
    else:
        engine = _read_json(_beside(path, str(name)))
        if _section(engine, "checkpoint", name).get("writer"):  # resuming takes what the Trainer has noted for complete
            raise InputError(f"{name}: checkpoint.writer: would still write when training goes on; leave it out")
        zero = _section(engine, "zero_optimization", name)
        stage = zero.get("stage", 0)
        devices = [_section(zero, f"offload_{part}", name).get("device") for part in ("optimizer", "param")]
    if stage not in (0, 1, 2, 3):
        raise InputError(f"{name or path}: ZeRO stage must be 0, 1, 2 or 3, is {stage!r}")
    optimizer, weights = (str(device or "none").lower() != "none" for device in devices)
    sharding = "none" if stage == 0 else f"zero{stage}"
    return {"sharding": sharding, "offload_optimizer": optimizer, "offload_weights": weights and stage == 3}


def _fsdp(config: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Resharding and offloading of FSDP2."""
    section = _section(config, "fsdp_config", path)
    if section.get("fsdp_version", 1) != 2:
        raise InputError(f"{path}: fsdp_config.fsdp_version: must be 2, is {section.get('fsdp_version', 1)!r}")
    reshard = section.get("fsdp_reshard_after_forward", True)
    offload = bool(section.get("fsdp_offload_params", False))
    return {
        "sharding": "fsdp2",
        "reshard": str(reshard).lower() in ("true", "full_shard"),
        "offload_optimizer": offload,
        "offload_weights": offload,
    }


def _beside(path: str | Path, name: str) -> Path:
    """A file that a config names, relative to the folder above the config, its own, or the working directory."""
    candidates = [Path(path).absolute().parents[1] / name, Path(path).parent / name, Path(name).expanduser()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: deepspeed_config_file: no file {' and no '.join(map(str, candidates))}")


def _read_json(path: Path) -> dict[str, Any]:
    """The mapping in a DeepSpeed config."""
    try:
        config = parse_json(path.read_text(encoding="utf-8"), str(path))
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: a DeepSpeed config is a mapping; this file holds {type(config).__name__}")
    return config
