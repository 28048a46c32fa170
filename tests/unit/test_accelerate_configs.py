"""Every file of accelerate_configs/ is one that accelerate reads as it is."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[2] / "accelerate_configs"
PROCESSES = {"single_gpu": (1, 1), "ddp": (1, 8), "multi_node": (2, 16), "cpu_ddp": (1, 2)}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes) == PROCESSES[path.stem]
    assert config.use_cpu == path.stem.startswith("cpu_")
    assert config.mixed_precision == "no"
