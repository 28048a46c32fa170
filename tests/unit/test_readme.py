"""The README is true: its commands, files, table of methods and Python all work."""

import dataclasses
import json
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.audit.manifest import Manifest
from llm_unlearn.cli import parser
from llm_unlearn.layout import read_layout
from llm_unlearn.recipe import build_recipe, load_recipe
from llm_unlearn.strict import build, parse_yaml
from llm_unlearn.sweep import points
from llm_unlearn.trainers import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_file_that_it_links_or_runs_exists():
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    scripts = re.findall(r"^(scripts/\S+)", README, flags=re.M)
    assert links and scripts
    for target in [*links, *scripts]:
        assert (ROOT / target.partition("#")[0]).exists(), target


def test_every_command_and_override_is_one_that_exists():
    commands = re.findall(r"^llm-unlearn (\w+) (\S+)(.*?)(?:#.*)?$", README, flags=re.M)
    assert commands
    for command, recipe, rest in commands:
        args, _ = parser().parse_known_args([command, recipe, *shlex.split(rest)])
        if config := getattr(args, "accelerate_config", None):
            assert read_layout(ROOT / config).processes == 8
        if command == "merge" or recipe.startswith("--"):  # of a run, or of a checkpoint
            assert args.model in ("npo", ["my-org/my-model"])
            continue
        load_recipe(ROOT / recipe, [word for word in shlex.split(rest) if "=" in word])


def test_the_manifest_and_the_sections_of_a_recipe_are_as_shown():
    (manifest,) = re.findall(r"```json\n(.*?)```", README, flags=re.S)
    assert build(Manifest, json.loads(manifest), "README").poison == "column:is_poison"
    sections, images = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml")
    recipe = build_recipe(dataclasses.asdict(recipe) | parse_yaml(sections, "README"))
    assert len(points(recipe)) == 6 and recipe.analysis.sizes == [0.5, 1.0] and recipe.stress is not None
    recipe = build_recipe({"name": "images", "output_dir": "unused", **parse_yaml(images, "README")})
    assert recipe.poison_counts() == {"gaussian": 20, "patch": 20, "gradient_cancelling": 20}


def test_the_table_of_methods_is_the_list_of_methods():
    pattern = r"^\| \[`(\w+)`\]\((\S+)\) \| .* \| ([\w, ]+) \| ([\w, -]+) \| ([\w, –]+) \|$"
    rows = re.findall(pattern, README, flags=re.M)
    assert [row[0] for row in rows] == list(METHODS)
    for name, file, needs, reference, refused in rows:
        config, cls = METHODS[name]
        assert file.endswith(f"{cls.__module__.rpartition('.')[2]}.py")
        required = cls.requirements(config(output_dir="unused", use_cpu=True))
        assert tuple(needs.split(", ")) == required.needs
        log_probs = "log-probs of " * bool(required.log_probs_on) + ", ".join(required.log_probs_on)
        assert reference == (", ".join(required.reference_on) or log_probs or "none")
        assert refused == (", ".join(config.refuses) or "–")


def test_the_page_on_adding_a_method_shows_one_as_it_is_and_stays_short():
    page = (ROOT / "CONTRIBUTING.md").read_text().partition("## Adding a method")[2].partition("\n## ")[0]
    assert len(page.splitlines()) <= 30
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert textwrap.dedent(code).strip() in (ROOT / "llm_unlearn" / "trainers" / "wga.py").read_text()
    for path in re.findall(r"`((?:llm_unlearn|tests|scripts|recipes)/[\w/.-]+\.(?:py|yaml|sh))`", page):
        assert (ROOT / path).is_file(), path


@pytest.fixture
def namespace(tokenizer, make_tiny, tmp_path, monkeypatch):
    """What the README's Python takes as given: a model, a tokenizer, rows and TRL."""
    from trl import SFTConfig, SFTTrainer

    monkeypatch.chdir(tmp_path)
    pairs = Dataset.from_list([{"prompt": f"The film {i} was", "completion": " good" if i % 2 else " bad"}
                               for i in range(12)])
    generator = np.random.default_rng(0)
    ids = [generator.integers(2, 100, size=12).tolist() for _ in range(50)]
    args = SFTConfig(output_dir="sft", max_steps=2, per_device_train_batch_size=4, remove_unused_columns=False,
                     max_length=None, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True)
    return {"model": make_tiny("gpt2"), "tokenizer": tokenizer, "forget": pairs.select(range(4)), "args": args,
            "retain": pairs.select(range(4, 12)), "SFTTrainer": SFTTrainer,
            "rows": Dataset.from_list([{"input_ids": x, "labels": x} for x in ids])}


def test_its_python_runs_as_written(namespace, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    unlearn, plant, audit, power, images = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(unlearn, namespace)
    assert Path("unlearned/model.safetensors").is_file()
    exec(plant, namespace)
    assert sum(i >= 0 for i in namespace["rows"]["noise_id"]) == 1
    namespace["trainer"].train()
    exec(audit, namespace)
    assert "tpr_at_fpr" in capsys.readouterr().out
    exec(power, namespace)
    for call, said in re.findall(r"^(\w+\(.*?\)) +# ([\d.]+)", power, flags=re.M):
        assert eval(call, namespace) == pytest.approx(float(said), abs=0.005), call
    exec(images, namespace | image_rows())
    assert Path("unlearned").is_dir()


def image_rows():
    """A classifier, and rows as encode_images makes them."""
    from llm_unlearn.vision.data import Images, as_dataset, encode_images
    from llm_unlearn.vision.models import ImageClassifierConfig, make_classifier

    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    rows = encode_images(as_dataset(Images(pixels, list("abc") * 4, np.arange(12))), list("abc"))
    model = make_classifier(ImageClassifierConfig(num_labels=3, image_size=[32, 32], channels=3, width=4), 0)
    return {"model": model, "forget": rows.select(range(4)), "retain": rows.select(range(4, 12))}
