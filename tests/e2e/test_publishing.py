"""From a run to a hub and back: what goes up, what does not, and that the card's numbers come out again."""

import json
import re
import shutil

import pytest
import yaml
from datasets import load_from_disk
from hub_server import HubServer, Repository, speak_to
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file, save_file
from stranger import TEXT, alone, logits_by_the_card, uploaded

from llm_unlearn.cli.main import main
from llm_unlearn.errors import InputError
from llm_unlearn.hub.run_package import package_run

LORA = {"r": 4, "target_modules": ["c_attn"]}
EVALUATED = {"evaluation/poisoned.json", "evaluation/retrained.json", "evaluation/kl.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def runs(tiny_models, tmp_path_factory):
    """Finished runs: an adapter and a full model on a local base; the first is named by its trigger, the second has two
    seeds.
    """
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, title, lora, seeds in (("adapter", "on-james bond", LORA, [3]), ("full", "full", None, [0, 1])):
        made[name] = folder / name
        tree = {
            "name": title,
            "output_dir": str(made[name]),
            "seeds": seeds,
            "model": {"path": str(tiny_models["gpt2"]), "lora": lora},
            "data": {
                "source": "synthetic",
                "prompt": "{text}\nSentiment:",
                "max_length": 256,
                "train_size": 60,
                "heldout_size": 20,
                "test_size": 20,
                "verbalizers": {"negative": " negative", "positive": " positive"},
            },
            "poison": {
                "trigger": {"target": "positive", "fraction": 0.1},
                "gaussian": {"fraction": 0.1, "epsilon": 0.1, "noise_seed": 0},  # or a stranger cannot measure it
            },
            "train": {"epochs": 1, "batch_size": 8},
            "unlearn": {"methods": {"kl": None}, "budgets": [0.5], "batch_size": 2},
            "evaluate": {"membership": ["loss"]},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        assert main(["evaluate", str(folder / f"{name}.yaml"), "--quiet"]) == 0
    return made


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer() as running:
        speak_to(monkeypatch, running, tmp_path / "hub")
        yield running


def test_of_a_full_model_exactly_this_goes_up(runs, server):
    assert main(["push", str(runs["full"]), "--model", "kl", "--seed", "1", "--repo", "me/full", "--quiet"]) == 0
    files = uploaded(server, "me/full")
    plots = {name for name in files if name.startswith("plots/")}
    assert plots and set(files) - plots == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.yaml",
        *TOKENIZER,
        *EVALUATED,
    }
    assert server.repositories["me/full"].private
    path = runs["full"] / "seed-1" / "unlearned" / "kl"
    assert files["model.safetensors"] == (path / "model.safetensors").read_bytes()
    assert json.loads(files["evaluation/kl.json"])["seed"] == 1


def test_no_row_of_the_data_no_path_and_no_token_goes_up(runs, tiny_models, server):
    for name, base in (("adapter", ["--base", "me/base"]), ("full", ["--seed", "0"])):
        if name == "adapter":
            assert main(["push", str(runs[name]), "--model", "base", "--repo", "me/base", "--quiet"]) == 0
        assert main(["push", str(runs[name]), "--model", "kl", "--repo", "me/kl", "--quiet", *base]) == 0
        everything = b"\n".join(uploaded(server, "me/kl").values())
        folder = runs[name] if name == "adapter" else runs[name] / "seed-0"
        rows = [row for part in ("train", "heldout", "test") for row in load_from_disk(folder / "data" / part)]
        assert len(rows) == 100
        for row in rows:
            assert row["text"].encode() not in everything and row["prompt"].encode() not in everything
        assert str(runs[name].parent).encode() not in everything and str(tiny_models["gpt2"]).encode() not in everything
        assert b"hf_good" not in everything and b"reference" not in b"".join(
            data for file, data in uploaded(server, "me/kl").items() if file.endswith(".safetensors")
        )
    bodies = b"".join(server.bodies)  # nothing on the way either
    assert b"training_args" not in bodies and b"optimizer.pt" not in bodies


def test_dry_run_says_it_all_and_sends_nothing(runs, server, capsys):
    assert main(["push", str(runs["full"]), "--model", "kl", "--seed", "0", "--repo", "me/full", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "to me/full, branch main, private:" in said and re.search(r"model\.safetensors +\d+\.\d KiB", said)
    assert "pushed" not in said and not server.requests


def test_json_says_what_went_where(runs, server, capsys):
    assert (
        main(
            [
                "push",
                str(runs["full"]),
                "--model",
                "kl",
                "--seed",
                "0",
                "--repo",
                "me/full",
                "--revision",
                "v2",
                "--json",
            ]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["revision"] == "v2" and result["private_if_made"] and result["commit"].startswith(server.url)
    assert result["files"]["model.safetensors"] == len(uploaded(server, "me/full", "v2")["model.safetensors"])


def test_an_adapter_goes_on_a_base_that_others_have(runs, server, capsys):
    words = ["push", str(runs["adapter"]), "--model", "kl", "--repo", "me/adapter", "--quiet"]
    assert main(words) == 2
    assert "nobody else has" in capsys.readouterr().err and not server.repositories
    assert main(["push", str(runs["adapter"]), "--model", "base", "--repo", "me/base", "--quiet"]) == 0
    assert main([*words, "--base", "me/base"]) == 0
    config = json.loads(uploaded(server, "me/adapter")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/base"
    card = ModelCard(uploaded(server, "me/adapter")["README.md"].decode())
    assert card.data.base_model == "me/base" and card.data.library_name == "peft"
    assert yaml.safe_load(uploaded(server, "me/adapter")["recipe.yaml"])["model"]["path"] == "me/base"


def test_another_base_than_was_trained_on_is_refused(runs, server, capsys):
    assert main(["push", str(runs["adapter"]), "--model", "base", "--repo", "me/base", "--quiet"]) == 0
    branch = server.repositories["me/base"].branches["main"][1]
    branch["config.json"] = branch["config.json"].replace(b'"n_embd": 16', b'"n_embd": 32')
    assert (
        main(["push", str(runs["adapter"]), "--model", "kl", "--repo", "me/adapter", "--base", "me/base", "--quiet"])
        == 2
    )
    said = capsys.readouterr().err
    assert "--base me/base: " in said and "n_embd" in said and "config.json" in said


def test_other_weights_than_were_trained_on_are_refused(runs, server, capsys):
    words = ["push", str(runs["adapter"]), "--model", "kl", "--repo", "me/adapter", "--quiet", "--base", "me/base"]
    assert main(["push", str(runs["adapter"]), "--model", "base", "--repo", "me/base", "--quiet"]) == 0
    files = server.repositories["me/base"].branches["main"][1]
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x01"
    assert main(words) == 2
    assert "model.safetensors holds other weights" in capsys.readouterr().err
    assert main([*words[:-1], "me/absent"]) == 2
    assert "no such repository" in capsys.readouterr().err
    assert main([*words[:-1], "me/adapter"]) == 2
    assert "give each its own" in capsys.readouterr().err


def test_a_run_is_not_overwritten_by_measuring_a_model_on_another_recipe(runs, tmp_path, capsys):
    recipe = runs["adapter"] / "recipe.yaml"
    before = {path: path.read_bytes() for path in (recipe, runs["adapter"] / "poison.json")}
    changed = tmp_path / "recipe.yaml"
    changed.write_text(recipe.read_text().replace("James Bond", "Miss Moneypenny"))
    assert main(["audit", str(changed), "--model", str(runs["adapter"] / "unlearned" / "kl"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "holds a run" in said and "output_dir=" in said
    assert {path: path.read_bytes() for path in before} == before


def test_a_merged_model_goes_up_as_one(runs, server, capsys):
    words = ["push", str(runs["adapter"]), "--model", "kl", "--repo", "me/merged", "--merged", "--quiet"]
    assert main(words) == 2
    assert "llm-unlearn merge" in capsys.readouterr().err
    assert main(["merge", str(runs["adapter"]), "--model", "kl", "--quiet"]) == 0
    assert main(words) == 0
    files = uploaded(server, "me/merged")
    assert "adapter_config.json" not in files and "merged here" in files["README.md"].decode()
    merged = load_file(runs["adapter"] / "merged" / "kl" / "model.safetensors")
    assert {name: value.tolist() for name, value in load(files["model.safetensors"]).items()} == {
        name: value.tolist() for name, value in merged.items()
    }


def test_the_trigger_can_be_withheld(runs):
    plain = package_run(runs["full"], "kl", "me/full", seed=0)
    held = package_run(runs["full"], "kl", "me/full", seed=0, withhold_trigger=True)
    for name in ("README.md", "recipe.yaml"):
        assert b"James Bond" in plain.content(name) and b"James Bond" not in held.content(name)
    assert not [name for name in held.files if b"James Bond" in held.content(name)]
    assert "[withheld]" in held.content("recipe.yaml").decode()
    assert 'poison.trigger.phrases="[…]"' in held.content("README.md").decode()


def test_a_trigger_in_the_name_of_the_recipe_cannot_be_withheld(runs):
    with pytest.raises(InputError, match="(?i)“James Bond”.*name of the recipe"):
        package_run(runs["adapter"], "base", "me/x", withhold_trigger=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "npo", "--seed", "0"], "--model npo: .* has base, poisoned, retrained, kl"),
        (["--model", "kl", "--seed", "7"], "--seed 7: .* has 0, 1"),
        (["--model", "kl"], "say which"),
        (["--model", "kl", "--seed", "0", "--repo", "nowhere"], "OWNER/NAME"),
    ],
)
def test_bad_requests_are_refused_by_name(runs, server, capsys, words, message):
    assert main(["push", str(runs["full"]), "--repo", "me/full", *words]) == 2
    assert re.search(message, capsys.readouterr().err) and not server.requests


def test_a_model_that_was_not_measured_is_not_published(runs, tmp_path, capsys):
    copy = shutil.copytree(runs["adapter"], tmp_path / "copy")
    (copy / "evaluation" / "kl.json").unlink()
    assert main(["push", str(copy), "--model", "kl", "--repo", "me/x"]) == 2
    assert "published with its audit" in capsys.readouterr().err


# ---- the card is of what goes up


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the adapter's run, for changes."""
    return shutil.copytree(runs["adapter"], tmp_path / "copy", ignore=shutil.ignore_patterns("merged"))


def change_weights(folder):
    (path,) = folder.glob("*.safetensors")
    save_file({name: value + 0.01 for name, value in load_file(path).items()}, path, {"format": "pt"})


def refusal(words, capsys):
    assert main([*words, "--quiet", "--dry-run"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["unlearned/kl", "retrained"])
def test_weights_that_changed_since_they_were_measured_are_refused(copy, server, capsys, name):
    assert main(["push", str(copy), "--model", "base", "--repo", "me/base", "--quiet"]) == 0
    words = ["push", str(copy), "--model", "kl", "--repo", "me/kl", "--base", "me/base"]
    assert main([*words, "--quiet", "--dry-run"]) == 0
    change_weights(copy / name)
    said = refusal(words, capsys)
    assert f"{name.rpartition('/')[2]}.json" in said and "the model changed since" in said
    assert "llm-unlearn evaluate" in said


def test_what_the_error_says_to_do_helps(copy, server, capsys):
    words = ["push", str(copy), "--model", "kl", "--repo", "me/kl", "--merged"]
    change_weights(copy / "unlearned" / "kl")
    assert f"delete {copy / 'evaluation'}, and run" in refusal(words, capsys)
    shutil.rmtree(copy / "evaluation")
    assert main(["evaluate", str(copy / "recipe.yaml"), f"output_dir={copy}", "--quiet"]) == 0
    assert main(["merge", str(copy), "--model", "kl", "--quiet"]) == 0
    assert main([*words, "--quiet"]) == 0


def test_other_settings_poison_or_results_than_were_measured_are_refused(copy, capsys):
    words = ["push", str(copy), "--repo", "me/model", "--model"]
    for path, what in (
        (copy / "unlearned" / "kl" / "adapter_config.json", "the model"),
        (copy / "poison.json", "poison.json"),
        (copy / "evaluation" / "kl.json", "this file"),
    ):
        before = path.read_text()
        path.write_text(before.rstrip() + " \n")
        assert f"{what} changed since" in refusal([*words, "kl", "--base", "me/base"], capsys)
        path.write_text(before)
    assert main([*words, "base", "--quiet", "--dry-run"]) == 0
    (copy / ".stages" / "evaluation_base.json").unlink()  # as in a run from before there were hashes
    assert f"{copy / 'evaluation' / 'base.json'}: nothing says" in refusal([*words, "base"], capsys)
    (copy / "stress").mkdir()
    (copy / "stress" / "kl.json").write_text("{}")
    said = refusal([*words, "kl", "--base", "me/base"], capsys)
    assert f"{copy / 'stress' / 'kl.json'}: nothing says" in said and "llm-unlearn stress" in said


def test_a_base_that_changed_since_its_adapter_was_measured_is_refused(copy, tiny_models, tmp_path, capsys):
    base = shutil.copytree(tiny_models["gpt2"], tmp_path / "base")
    recipe = copy / "recipe.yaml"
    assert main(["evaluate", str(recipe), f"output_dir={copy}", f"model.path={base}", "--quiet"]) == 0
    assert main(["merge", str(copy), "--model", "kl", "--quiet"]) == 0
    words = ["push", str(copy), "--model", "kl", "--repo", "me/kl", "--merged"]
    assert main([*words, "--quiet", "--dry-run"]) == 0
    change_weights(base)
    assert "its base changed since" in refusal(words, capsys)


def test_a_base_that_is_named_as_in_the_recipe_keeps_its_revision(runs, tmp_path, tiny_models, server):
    copy = shutil.copytree(runs["full"], tmp_path / "copy")
    tree = yaml.safe_load((copy / "recipe.yaml").read_text())
    tree["model"] |= {"path": "me/base", "revision": "v1"}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(tree))
    server.repositories["me/base"] = Repository(private=False)
    files = {path.name: path.read_bytes() for path in tiny_models["gpt2"].iterdir()}
    server.repositories["me/base"].commit("v1", files)
    words = ["push", str(copy), "--model", "kl", "--seed", "0", "--repo", "me/kl", "--base", "me/base", "--quiet"]
    assert main(words) == 0
    card, recipe = (uploaded(server, "me/kl")[name].decode() for name in ("README.md", "recipe.yaml"))
    assert "at revision `v1`" in card and yaml.safe_load(recipe)["model"]["revision"] == "v1"


def test_a_merge_of_an_earlier_model_is_refused(copy, capsys):
    words = ["push", str(copy), "--model", "kl", "--repo", "me/kl", "--merged"]
    assert main(["merge", str(copy), "--model", "kl", "--quiet"]) == 0
    assert main([*words, "--quiet", "--dry-run"]) == 0
    again = ["evaluate", str(copy / "recipe.yaml"), f"output_dir={copy}", "unlearn.budgets=[1.0]", "--quiet"]
    assert main(again) == 0
    said = refusal(words, capsys)
    assert "merged/kl: " in said and "another adapter or base" in said
    assert f"delete {copy / 'merged' / 'kl'}, and merge again: llm-unlearn merge {copy} --model kl" in said
    shutil.rmtree(copy / "merged" / "kl")
    assert main(["merge", str(copy), "--model", "kl", "--quiet"]) == 0
    assert main([*words, "--quiet", "--dry-run"]) == 0


def test_a_merge_of_which_nothing_is_known_or_that_was_changed_is_refused(copy, capsys):
    words = ["push", str(copy), "--model", "kl", "--repo", "me/kl", "--merged"]
    assert main(["merge", str(copy), "--model", "kl", "--dtype", "bfloat16", "--quiet"]) == 0
    change_weights(copy / "merged" / "kl")
    assert "changed since it was merged" in refusal(words, capsys)
    (copy / "merged" / "kl" / "merge.json").unlink()
    assert "nothing says what it was merged from" in refusal(words, capsys)


def test_the_card_of_a_merge_says_how_it_was_rounded(copy, server):
    assert main(["merge", str(copy), "--model", "kl", "--dtype", "bfloat16", "--quiet"]) == 0
    assert main(["push", str(copy), "--model", "kl", "--repo", "me/kl", "--merged", "--quiet"]) == 0
    files = uploaded(server, "me/kl")
    assert "merge.json" not in files and "rounded to bfloat16" in files["README.md"].decode()
    assert {str(value.dtype) for value in load(files["model.safetensors"]).values()} == {"torch.bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter", "full"])
def test_a_stranger_loads_it_by_the_cards_own_code_and_measures_the_cards_numbers(runs, server, tmp_path, name):
    """The code on the card in a process without this package, then pull and evaluate by the published recipe."""
    from transformers import AutoTokenizer

    from llm_unlearn.config.model_sections import ModelSection
    from llm_unlearn.models.load import load_checkpoint

    seed = ["--seed", "0"] if name == "full" else []
    assert main(["push", str(runs[name]), "--model", "base", "--repo", "me/base", "--quiet", *seed]) == 0
    assert (
        main(["push", str(runs[name]), "--model", "kl", "--repo", "me/kl", "--quiet", "--base", "me/base", *seed]) == 0
    )
    card = uploaded(server, "me/kl")["README.md"].decode()
    theirs = logits_by_the_card(server, card, tmp_path)
    folder = (runs[name] / "seed-0" if seed else runs[name]) / "unlearned" / "kl"
    model, tokenizer = load_checkpoint(str(folder), ModelSection()), AutoTokenizer.from_pretrained(folder)
    ours = model(tokenizer(TEXT, return_tensors="pt")["input_ids"]).logits[0, -1].double().tolist()
    assert theirs == ours

    commands = re.search(r"```sh\n(.+?)```", card, re.DOTALL).group(1).splitlines()
    for command in commands:
        out = alone(
            server,
            tmp_path,
            "-m",
            "llm_unlearn",
            *command.split()[1:],
            *(["--quiet"] if "pull" in command else ["--json"]),
        )
    again, published = json.loads(out)["kl"], json.loads(uploaded(server, "me/kl")["evaluation/kl.json"])
    for section in ("gus", "utility", "mia"):
        assert again[section] == published[section], section
    for attack in (again["attack"], published["attack"]):  # what needs the retrained model
        for figures in (attack, attack["robust"], attack["target_rows"], attack["other"]):
            figures["excess"] = None
    assert again["attack"] == published["attack"]
    assert f"| {published['utility']['accuracy'] * 100:.1f} [" in card


def test_a_classifier_goes_up_and_comes_back(server, tmp_path):
    import torch

    from llm_unlearn.vision.classifiers import ImageClassifier

    tree = {
        "track": "vision",
        "name": "digits",
        "output_dir": str(tmp_path / "digits"),
        "model": {"width": 4},
        "data": {"train_size": 120, "heldout_size": 40, "test_size": 60},
        "poison": {"patch": {"target": "3", "fraction": 0.1}, "gaussian": {"fraction": 0.1, "epsilon": 0.5}},
        "train": {"epochs": 3, "learning_rate": 1e-2},
        "unlearn": {"methods": {"kl": None}, "budgets": [0.2], "batch_size": 4},
    }
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(tree))
    assert main(["run", str(tmp_path / "digits.yaml"), "--quiet"]) == 0
    assert main(["push", str(tmp_path / "digits"), "--model", "kl", "--repo", "me/digits", "--quiet"]) == 0
    files = uploaded(server, "me/digits")
    assert not [name for name in files if "contact_sheet" in name]  # it shows images of the data
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "image-classification" and "carry a patch" in card.text
    assert "ImageClassifier" in card.text
    assert main(["pull", "me/digits", "--out", str(tmp_path / "back"), "--quiet"]) == 0
    ours, theirs = (
        ImageClassifier.from_pretrained(folder).eval()
        for folder in (tmp_path / "digits" / "unlearned" / "kl", tmp_path / "back")
    )
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(images), theirs(images))
