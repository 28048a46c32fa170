"""Every file of accelerate_configs/ is one that accelerate reads as it is."""

import json

import pytest
from paths import ROOT

pytestmark = pytest.mark.unit

FOLDER = ROOT / "accelerate_configs"
PROCESSES = {"single_gpu": (1, 1), "multi_node": (2, 16)}  # (machines, processes), of others by their names
ENGINE = {"zero": "DEEPSPEED", "fsdp": "FSDP"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    on_cpu = path.stem.startswith("cpu_")
    assert (config.num_machines, config.num_processes) == PROCESSES.get(path.stem, (1, 2 if on_cpu else 8))
    assert config.use_cpu == on_cpu
    engine = ENGINE.get(path.stem.removeprefix("cpu_")[:4], "NO" if path.stem == "single_gpu" else "MULTI_GPU")
    assert config.distributed_type == engine
    if engine == "DEEPSPEED":  # accelerate refuses what both files could say
        assert config.mixed_precision is None
        file = path.with_suffix(".json")
        assert config.deepspeed_config["deepspeed_config_file"] == f"accelerate_configs/{file.name}"
        assert f"zero{json.loads(file.read_text())['zero_optimization']['stage']}" in path.stem
    else:
        assert config.mixed_precision == "no"


def test_every_engine_has_a_config_for_gpus_and_one_for_the_tests():
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert names == {
        "single_gpu",
        "multi_node",
        "zero3_offload",
        *(f"{where}{engine}" for where in ("", "cpu_") for engine in ("ddp", "zero1", "zero2", "zero3", "fsdp2")),
    }
