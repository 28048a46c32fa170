"""Two processes under FSDP2 hold half of a model and half of its reference each, from the loading on."""

import json
import sys
from pathlib import Path

import pytest
from launched import run_launched
from paths import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORKER = ROOT / "tests" / "distributed" / "memory_worker.py"


def held(model: Path, out: Path) -> list[dict[str, int]]:
    """By process, what memory_worker.py measures."""
    out.mkdir()
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_fsdp2.yaml"]
    # what is freed goes back to the system at once, so that it does not count
    run_launched([sys.executable, *launcher, str(WORKER), str(model), str(out)], MALLOC_MMAP_THRESHOLD_="131072")
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's own account of memory")
def test_each_of_two_processes_holds_half(tmp_path):
    config = LlamaConfig(
        vocab_size=1001,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    weights = sum(p.nbytes for p in model.parameters())
    assert weights > 120 * 2**20
    model.save_pretrained(tmp_path / "model")
    processes = held(tmp_path / "model", tmp_path / "two")
    assert len(processes) == 2
    for process in processes:
        assert process["loaded"] == pytest.approx(weights / 2, rel=0.15)
        assert process["referenced"] == pytest.approx(weights, rel=0.25)  # the trainer and its libraries among it
        # in the step a half of each, of the gradients, and the gathered weights of a layer at a time; whole ones: 3
        assert process["referenced"] < process["peak"] < 3 * weights
