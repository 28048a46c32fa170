"""The pages are true: what they link is there, their commands, YAML, JSON and Python work, the reference is current."""

import dataclasses
import importlib.util
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset
from pages import PAGES, ROOT, anchors, blocks, commands, languages, links
from support import KINDS, OPTIONS, trainer

import llm_unlearn
from llm_unlearn import power
from llm_unlearn.cli.main import main, parser
from llm_unlearn.config.manifest import Manifest
from llm_unlearn.config.recipe import Recipe, VisionRecipe, build_recipe
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.config.search_fields import SearchSection
from llm_unlearn.config.strict import parse_yaml
from llm_unlearn.config.sweep import points
from llm_unlearn.config.validate import validated
from llm_unlearn.distributed.topology import read_topology
from llm_unlearn.metrics import evidence, findings
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

pytestmark = pytest.mark.unit

# whose Python is run, each by a test below or (README.md) in test_readme.py or (your-model.md) in e2e/test_given.py
WITH_PYTHON = {
    "README.md",
    *(f"docs/{page}.md" for page in ("adding-a-method", "auditing", "images", "open-unlearning", "your-model")),
}
of_pages = pytest.mark.parametrize("page", PAGES)

spec = importlib.util.spec_from_file_location("recipe_reference", ROOT / "scripts" / "recipe_reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def test_the_walk_from_batch_to_loss_names_what_is_in_its_files():
    rows = re.findall(r"^\| (\d) \| `(\S+)` \| (.*) \|$", PAGES["docs/how-a-step-runs.md"], flags=re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1)) and 3 <= len(rows) <= 7
    for _, file, text in rows:
        names = {part for name in re.findall(r"`([\w.]+)`", text) for part in name.split(".")}
        defined = set(re.findall(r"^ *(?:def|class) (\w+)", (ROOT / file).read_text(encoding="utf-8"), flags=re.M))
        assert names and names <= defined, (file, names - defined)


# ---- every page


@of_pages
def test_what_a_page_links_is_there_down_to_the_heading(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


def test_the_index_names_every_page():
    assert {name for name in links("docs/README.md") if "/" not in name} >= {
        path.removeprefix("docs/") for path in PAGES if path.startswith("docs/")
    } - {"README.md"}


@of_pages
def test_a_page_has_no_code_that_nothing_checks(page):
    assert languages(page) <= {"sh", "yaml", "json", "python", "text"}  # text: what a command prints
    assert "python" not in languages(page) or page in WITH_PYTHON


@of_pages
def test_the_files_that_a_page_names_are_there(page):
    text = re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.S | re.M)
    for name in re.findall(r"`((?:llm_unlearn|tests|scripts|recipes|accelerate_configs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name


@of_pages
def test_lines_are_no_longer_than_they_should_be(page):
    for line in PAGES[page].splitlines():
        assert len(line) <= 130 or line.startswith(("|", "![")), line


@of_pages
def test_the_commands_of_a_page_are_ones_that_work(page):
    for words in commands(page):
        check_command(words)


def check_command(words: list[str]) -> None:
    """A command that exists, with options that it has and files that are there."""
    program, *rest = words
    if program == "llm-unlearn":
        check_our_command(rest)
    elif program == "sbatch":
        assert (ROOT / rest[0]).is_file()
        check_our_command(rest[1:])
    elif program == "python":
        source = (ROOT / rest[0]).read_text()
        for word in rest[1:]:
            assert not word.startswith("--") or f'"{word}"' in source, words
            assert not word.startswith("recipes/") or load_recipe(ROOT / word), words
    elif program == "source":
        assert words == ["source", ".venv/bin/activate"]
    else:
        assert os.access(ROOT / program, os.X_OK) or program == ".venv/bin/ruff", words


def check_our_command(words: list[str]) -> None:
    args, overrides = parser().parse_known_args(words)  # as main does
    assert not any(word.startswith("-") for word in overrides), words
    if config := getattr(args, "accelerate_config", None):
        assert read_topology(ROOT / config).processes == 8
    if getattr(args, "run_dir", None):  # of one model of a run
        assert args.model.partition("@")[0] in {*METHODS, "poisoned", "retrained", "clean", "base"}
    if getattr(args, "manifest", None):
        assert args.model and (not args.recipe or "=" in args.recipe)  # an override, as main takes it
    elif getattr(args, "recipe", None):
        assert points(load_recipe(ROOT / args.recipe, [*args.overrides, *overrides])) is not None


@of_pages
def test_the_yaml_of_a_page_is_of_recipes_and_its_json_of_manifests(page):
    quickstart = load_recipe(ROOT / "recipes/quickstart.yaml").model_dump()
    for block in blocks(page, "yaml"):
        tree = parse_yaml(block, page)
        if isinstance(tree, list):  # of a search
            assert validated(SearchSection, {"candidates": tree}, page).candidates == tree
            continue
        alone = tree.get("track") == "vision" or "given" in tree
        start = {"name": "x", "output_dir": "unused"} if alone else quickstart
        assert points(build_recipe(start | tree)) is not None
    for block in blocks(page, "json"):
        assert validated(Manifest, json.loads(block), page).poison == "column:is_poison"


def test_the_sections_that_are_shown_ask_for_what_they_say():
    (sections,), (images,) = blocks("docs/running.md", "yaml"), blocks("docs/images.md", "yaml")
    quickstart = load_recipe(ROOT / "recipes/quickstart.yaml").model_dump()
    recipe = build_recipe(quickstart | parse_yaml(sections, "running.md"))
    assert len(points(recipe)) == 6 and recipe.analysis.sizes == [0.5, 1.0] and recipe.stress is not None
    recipe = build_recipe({"name": "images", "output_dir": "unused", **parse_yaml(images, "images.md")})
    assert recipe.poison_counts() == {"gaussian": 20, "patch": 20, "gradient_cancelling": 20}


# ---- single pages


def test_the_thresholds_in_words_are_those_of_the_verdict():
    rules = PAGES["docs/concepts.md"].partition("## The verdict")[2].partition("\n## ")[0]
    delta = evidence.DELTA
    for words in (
        f"the level {evidence.ALPHA:g}",
        f"with probability {findings.CHANCE:g}",
        f"a mean score of {delta['gus']:g} and a lift of {delta['lift']:g}",
        f"p < {evidence.RARE:g}",
        *(f"**{status}**" for status in evidence.Status),
        f"{evidence.COSTLY_POINTS:g} or more points of accuracy",
    ):
        assert words in rules, words


def test_the_differences_from_open_unlearning_are_as_they_are_shown():
    snippets = blocks("docs/open-unlearning.md", "python")
    names: dict = {}
    for snippet in snippets:
        assert "assert" in snippet
        exec(snippet, names)  # one after the other, as a reader would
    assert len(snippets) >= 8


def test_the_defaults_beside_open_unlearnings_are_those_of_the_methods():
    from llm_unlearn.config.presets import PRESETS

    rows = dict(re.findall(r"^\| ([^|]+): [^|]+ \| [^|]+ \| ([^|]+) \|$", PAGES["docs/open-unlearning.md"], flags=re.M))
    theirs = PRESETS["open-unlearning"]
    assert rows["SimNPO"] == f"{METHODS['simnpo'][0].gamma:g}" and theirs["simnpo"]["gamma"] == 0.125
    assert rows["SatImp"] == f"{METHODS['satimp'][0].gamma:g}" and theirs["satimp"]["gamma"] == 0.1
    assert rows["GradDiff, KL"] == f"{METHODS['grad_diff'][0].alpha:g}" == f"{METHODS['kl'][0].alpha:g}"
    assert rows["RMU"].startswith(f"{METHODS['rmu'][0].steering:g}, {METHODS['rmu'][0].alpha:g};")


def test_the_table_of_power_is_what_power_says():
    table = re.findall(r"^\| +(\d+|canaries) \| (.+) \|$", PAGES["docs/auditing.md"], flags=re.M)
    (_, effects), *rows = table
    assert len(rows) == 6
    for n, values in rows:
        for effect, value in zip(effects.split(" | "), values.split(" | "), strict=True):
            assert f"{power(int(n), float(effect)):.2f}" == value, (n, effect)


def test_every_recipe_is_in_the_list_of_recipes():
    listed = {(ROOT / "docs" / name.partition("#")[0]).resolve() for name in links("docs/running.md")}
    for path in (ROOT / "recipes").iterdir():
        what = path / "README.md" if path.is_dir() else path
        assert what.resolve() in listed or not what.is_file() or path.name == "ANALYSIS.md", path


def test_the_reference_is_current_and_can_be_seen_not_to_be(monkeypatch, tmp_path, capsys):
    assert reference.main(["--check"]) == 0, "run python scripts/recipe_reference.py"
    texts = {tmp_path / path.name: text for path, text in reference.files().items()}
    monkeypatch.setattr(reference, "files", lambda: texts)
    assert reference.main(["--check"]) == 1 and capsys.readouterr().err.count("not current") == len(texts) == 3
    assert reference.main([]) == 0 and (tmp_path / "recipe.md").read_text() == PAGES["docs/recipe.md"]
    assert reference.main(["--check"]) == 0


def table_under(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading of the reference."""
    part = PAGES["docs/recipe.md"].partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in part.splitlines() if line.startswith("| ")][2:]


def test_every_field_of_every_section_is_there_with_its_meaning():
    seen = 0
    for model, title in ((Recipe, ""), (VisionRecipe, "images: ")):
        schema = model.model_json_schema()
        for path, node in reference.sections(schema, schema):
            rows = table_under(f"{title}`{path or 'recipe'}`") or table_under(f"`{path}`")
            missing = {"benchmark", "pretrain", "analysis", "stress"} if model is VisionRecipe and not path else set()
            assert [row[0].strip("`") for row in rows] == [
                name for name in node["properties"] if name not in missing
            ], path
            assert all(len(row) == 4 and len(row[3]) > 2 for row in rows), path
            seen += len(rows)
    assert seen > 150


def test_every_option_of_every_method_is_there_with_its_meaning():
    everyone, retain = (table_under(f"Of {which}") for which in ("every method", "the methods with a retain term"))
    assert {row[0].strip("`") for row in everyone} == set(UnlearnConfig.__annotations__) - {
        "learning_rate_ratio",
        "refuses",
    }
    alone = table_under("Of one method")
    assert list(dict.fromkeys(row[0].strip("`") for row in alone)) == list(METHODS)
    assert all(len(row[-1]) > 2 for row in [*everyone, *retain, *alone])
    for method, (config, _) in METHODS.items():
        own = {f.name for f in dataclasses.fields(config)} - {f.name for f in dataclasses.fields(UnlearnConfig)}
        shown = {row[2].strip("`"): row for row in alone if row[0] == f"`{method}`"}
        assert own <= set(shown) | {row[0].strip("`") for row in retain}, method
        assert all(row[1] == f"{config.learning_rate_ratio:g}" for row in shown.values())


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "version", "references"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["version"] == llm_unlearn.__version__
    (paper,) = citation["references"]
    assert paper["title"].startswith("Machine Unlearning Fails") and len(paper["authors"]) == 6
    project = (ROOT / "pyproject.toml").read_text()
    assert citation["authors"][0]["name"] in project and citation["license"] in project
    newest = re.findall(r"^## \[(.+?)\]", PAGES["CHANGELOG.md"], flags=re.M)
    assert llm_unlearn.__version__ in newest[:2]


# ---- Python, as it stands there


@pytest.fixture
def on_cpu(tmp_path, monkeypatch):
    """In a folder of its own, where a trainer of TRL takes the CPU, and says nothing."""
    import trl

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(
        trl, "SFTConfig", partial(trl.SFTConfig, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
    )


def test_an_audit_from_planting_to_the_answer(on_cpu, tokenizer, capsys):
    from llm_unlearn.data.synthetic import synthetic_reviews
    from llm_unlearn.models.make import make_model

    tiny = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 512}
    model = make_model(tiny, tokenizer, 0)
    reviews = synthetic_reviews(100, 0)
    parts = {"reviews": range(60), "heldout": range(60, 80), "test": range(80, 100)}
    names = {"model": model, "tokenizer": tokenizer, **{name: reviews.select(rows) for name, rows in parts.items()}}
    how_many, strings, plant, keep, delete, score = blocks("docs/auditing.md", "python")
    for block in (how_many, strings, plant, keep):
        exec(block, names)
    changed = [a != b for a, b in zip(names["with_strings"]["text"], names["for_unlearning"]["text"], strict=True)]
    assert sum(changed) == len(names["tokens"]["hidden_ids"]) == 3
    for call, said in re.findall(r"^(\w+\(.*?\)) +# ([\d.]+)", how_many, flags=re.M):
        assert eval(call, names) == pytest.approx(float(said), abs=0.005), call
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    assert sum(row["noise_id"] >= 0 for row in rows) == len(names["noise"]["example_ids"]) == 6
    assert {*names["noise"]["example_ids"], *names["bad"]} == {*names["forget"]}
    exec(delete, names)
    (ask,) = (words[1:] for words in commands("docs/auditing.md") if "canaried" in words)
    assert main([*ask, "--quiet"]) == 0 and Path("audit/canaried.json").is_file()
    exec(score, names)
    assert "tpr_at_fpr" in capsys.readouterr().out
    # the command, which tokenises the rows itself, scores the very tokens that were trained on
    found = json.loads(Path("audit/unlearned.json").read_text())["gus"]
    assert found["n"] == found["shown"]["n"] == 3 and found["mean"] == pytest.approx(
        names["scores"][:, 0].mean(), abs=1e-4
    )


def test_the_method_of_the_page_works(on_cpu, tokenizer, make_tiny, tmp_path, monkeypatch):
    pairs = Dataset.from_list(
        [{"prompt": f"The film {i} was", "completion": " good" if i % 2 else " bad"} for i in range(12)]
    )
    names = {
        "model": make_tiny("gpt2"),
        "tokenizer": tokenizer,
        "forget": pairs.select(range(4)),
        "retain": pairs.select(range(4, 12)),
    }
    for block in blocks("docs/adding-a-method.md", "python"):
        exec(block, names)  # the last one trains it
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert [test() for test in tests] == [None]
    config = names["BoundedAscentConfig"]
    monkeypatch.setitem(METHODS, "bounded_ascent", (config, names["BoundedAscentTrainer"]))
    monkeypatch.setitem(OPTIONS, "bounded_ascent", {"retain_loss": "none"})
    for kind in KINDS:
        run = trainer("bounded_ascent", kind, tmp_path / kind, max_steps=12)
        before = run.evaluate()["eval_forget_loss"]
        run.train()
        assert run.evaluate()["eval_forget_loss"] > before + 0.05, kind
    assert reference.arguments(config)["ceiling"].startswith("nats per token")


def test_adding_a_method_stays_a_page():
    steps = PAGES["docs/adding-a-method.md"].partition("## The five steps")[2].partition("\n## ")[0]
    assert len(steps.strip().splitlines()) <= 30
    assert len(re.findall(r"^\d\. ", steps, flags=re.M)) == 5


def test_images_in_python(on_cpu):
    from llm_unlearn.vision.classifiers import ImageClassifierConfig, make_classifier
    from llm_unlearn.vision.image_data import Images, as_dataset, encode_images

    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    rows = encode_images(as_dataset(Images(pixels, list("abc") * 4, np.arange(12))), list("abc"))
    model = make_classifier(ImageClassifierConfig(num_labels=3, image_size=[32, 32], channels=3, width=4), 0)
    (block,) = blocks("docs/images.md", "python")
    exec(block, {"model": model, "forget": rows.select(range(4)), "retain": rows.select(range(4, 12))})
    assert Path("unlearned").is_dir()
