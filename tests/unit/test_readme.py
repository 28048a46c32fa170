"""The README is true: its table of methods is the list of methods, its Python works. What it has in common with the
other pages (links, commands, YAML, JSON) is in test_docs.py."""

import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from pages import PAGES, ROOT, blocks, commands, links

from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.unit

README = PAGES["README.md"]


def test_it_has_two_commands_a_picture_and_a_way_on_and_stays_short():
    assert [words[0] for words in commands("README.md")[:2]] == ["scripts/quickstart.sh", "scripts/test.sh"]
    assert any(target.endswith(".png") for target in links("README.md"))
    pages = {target.partition("#")[0] for target in links("README.md")}
    assert pages >= set(PAGES) - {"README.md", "docs/README.md"}
    assert len(README.splitlines()) <= 170


def test_the_table_of_methods_is_the_list_of_methods():
    pattern = r"^\| \[`(\w+)`\]\((\S+)\) \| .* \| ([\w, ]+) \| ([\w, -]+) \| ([\w, –]+) \|$"
    rows = re.findall(pattern, README, flags=re.M)
    assert [row[0] for row in rows] == list(METHODS)
    for name, file, needs, reference, refused in rows:
        config, cls = METHODS[name]
        assert file.endswith(f"{cls.__module__.rpartition('.')[2]}.py") and (ROOT / file).is_file()
        required = config(output_dir="unused", use_cpu=True).requires()
        assert tuple(needs.split(", ")) == required.sets
        log_probs = "log-probs of " * bool(required.log_probs_on) + ", ".join(required.log_probs_on)
        assert reference == (", ".join(required.reference_on) or log_probs or "none")
        assert refused == (", ".join(config.refuses) or "–")


def test_its_python_runs_as_written(tokenizer, make_tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    pairs = Dataset.from_list(
        [{"prompt": f"The film {i} was", "completion": " good" if i % 2 else " bad"} for i in range(12)]
    )
    ids = [np.random.default_rng(i).integers(2, 100, size=12).tolist() for i in range(5)]
    (block,) = blocks("README.md", "python")
    assert len(block.splitlines()) <= 20
    exec(
        block,
        {
            "model": make_tiny("gpt2"),
            "tokenizer": tokenizer,
            "forget": pairs.select(range(4)),
            "retain": pairs.select(range(4, 12)),
            "canaries": [{"input_ids": x, "labels": x, "noise_id": i} for i, x in enumerate(ids)],
        },
    )
    assert Path("unlearned/model.safetensors").is_file()
    assert "tpr_at_fpr" in capsys.readouterr().out
