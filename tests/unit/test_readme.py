"""The README is true: its methods are the list of methods, its Python works, its audit is that of the measured run.

What it has in common with the other pages (links, commands, YAML, JSON) is in test_docs.py.
"""

import json
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
    assert {"scripts/quickstart.sh", "scripts/test.sh"} <= {words[0] for words in commands("README.md")}
    assert any(target.endswith(".png") for target in links("README.md"))
    pages = {target.partition("#")[0] for target in links("README.md")}
    assert pages >= set(PAGES) - {"README.md", "docs/README.md"}
    assert len(README.splitlines()) <= 200


def test_every_method_has_its_place_once():
    kinds = README.partition("\n## Methods\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|.*$", kinds, flags=re.M)))) == sorted(METHODS)


def test_the_audit_that_it_shows_has_the_figures_of_the_measured_run():
    (block,) = blocks("README.md", "text")
    result = json.loads((ROOT / "recipes/quickstart-results/evaluation/kl.json").read_text(encoding="utf-8"))
    gus, attack, utility, oracle = (result[section] for section in ("gus", "attack", "utility", "oracle"))
    kept = attack["target_rows"]
    for figure in (
        f"{gus['mean']:.2f} (n = {gus['n']}, p = {gus['p_value']:.2g})",
        f"{attack['lift']:.2f} [{', '.join(f'{bound:.2f}' for bound in attack['ci95']['lift'])}]",
        f"{attack['excess']['mean']:.2f} (p = {attack['excess']['p_value']:.2g})",
        f"right answer: {100 * kept['with_trigger']:.0f} % with it, {100 * kept['without']:.0f} % without",
        f"target lost to the trigger {kept['excess']['mean']:.2f} [",
        *(f"{name}: AUC {mia['auc']:.2f} (p = {mia['p_value']:.2g})" for name, mia in result["mia"].items()),
        f"accuracy {100 * utility['accuracy']:.1f} %",
        f"perplexity {utility['perplexity']:.2f}",
        f"{100 * oracle['agreement']:.1f} %",
        f"{oracle['kl']:.3f}",
    ):
        assert figure in block, figure


def test_the_table_of_methods_is_the_list_of_methods():
    pattern = r"^\| \[`(\w+)`\]\((\S+)\) \| .* \| ([\w, ]+) \| ([\w, -]+) \| ([\w, –]+) \|$"
    rows = re.findall(pattern, PAGES["docs/methods.md"], flags=re.M)
    assert [row[0] for row in rows] == list(METHODS)
    for name, file, needs, reference, refused in rows:
        config, cls = METHODS[name]
        assert file.endswith(f"{cls.__module__.rpartition('.')[2]}.py") and (ROOT / "docs" / file).is_file()
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
            "noise": {"seed": 0},
            "canaries": [{"input_ids": x, "labels": x, "noise_id": i} for i, x in enumerate(ids)],
        },
    )
    assert Path("unlearned/model.safetensors").is_file()
    assert "tpr_at_fpr" in capsys.readouterr().out
