"""What `--accelerate-config` refuses before it launches, and what it makes of a launch that fails."""

import json
import re
from contextlib import nullcontext

import pytest
from paths import ROOT

from llm_unlearn.cli.main import main
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.distributed.launch import EXIT_CODE_FILE, launch, leave_exit_code
from llm_unlearn.errors import InputError, LaunchError
from llm_unlearn.runs.launch_checks import check_topology

pytestmark = pytest.mark.unit

CONFIGS = ROOT / "accelerate_configs"


@pytest.fixture
def recipe():
    return load_recipe(ROOT / "recipes" / "quickstart.yaml")


def with_section(recipe, name: str, **changes):
    return recipe.changed(**{name: getattr(recipe, name).changed(**changes)})


def test_what_can_run_is_let_through(recipe):
    for name in ("cpu_ddp", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2", "cpu_fsdp2"):
        assert check_topology(recipe, str(CONFIGS / f"{name}.yaml")).processes == (2 if "cpu" in name else 8)


@pytest.mark.parametrize(
    ("method", "config"), [("ssd", "zero1"), ("ssd", "fsdp2"), ("noisy_gradient_descent", "zero3")]
)
def test_a_method_that_an_engine_cannot_run_is_named(recipe, method, config):
    recipe = with_section(recipe, "unlearn", methods={method: None})
    with pytest.raises(InputError, match=rf"^recipe\.unlearn\.methods\.{method}: .*leave it out"):
        check_topology(recipe, str(CONFIGS / f"{config}.yaml"))
    check_topology(recipe, str(CONFIGS / "ddp.yaml"))


def test_rows_that_cannot_be_shared_evenly_are_refused(recipe):
    with pytest.raises(InputError, match=r"^recipe\.train\.batch_size: 12 rows.* 8 processes"):
        check_topology(with_section(recipe, "train", batch_size=12), str(CONFIGS / "ddp.yaml"))


def test_the_points_of_a_sweep_are_looked_at_too(recipe):
    with pytest.raises(InputError, match=r"recipe\.train\.batch_size: 12 rows.* 8 processes"):
        check_topology(recipe.changed(sweep={"train.batch_size": [12]}), str(CONFIGS / "ddp.yaml"))


def test_several_machines_are_started_on_each_of_them(recipe):
    with pytest.raises(InputError, match=r"multi_node\.yaml: num_machines: 2\b.*scripts/slurm\.sh"):
        check_topology(recipe, str(CONFIGS / "multi_node.yaml"))


def test_a_model_spread_over_the_gpus_of_one_process_is_not_evaluated_in_several(recipe):
    recipe = with_section(recipe, "evaluate", device_map="auto")
    with pytest.raises(InputError, match="recipe.evaluate.device_map: .* evaluate without --accelerate-config"):
        check_topology(recipe, str(CONFIGS / "ddp.yaml"))


@pytest.mark.parametrize(
    ("storage", "bf16", "config", "is_refused"),
    [
        ("float32", False, "fsdp2", False),
        ("bfloat16", True, "fsdp2", False),
        ("float32", True, "fsdp2", True),
        ("bfloat16", True, "zero3", True),
        ("uint8", True, "zero3", False),
    ],
)
def test_4_bit_weights_are_kept_as_a_type_that_the_engine_leaves_alone(recipe, storage, bf16, config, is_refused):
    recipe = with_section(recipe, "model", lora={}, quantization="4bit", quant_storage=storage)
    recipe = with_section(recipe, "train", bf16=bf16)
    with pytest.raises(InputError, match=rf"^recipe\.model\.quant_storage: {storage}") if is_refused else nullcontext():
        check_topology(recipe, str(CONFIGS / f"{config}.yaml"))


def test_images_are_not_sharded():
    recipe = load_recipe(ROOT / "recipes" / "cifar10-small" / "patch-and-gaussian.yaml")
    recipe = with_section(recipe, "unlearn", methods={"kl": None}, batch_size=8)
    with pytest.raises(InputError, match=r"zero3\.yaml: images .*ddp\.yaml"):
        check_topology(recipe, str(CONFIGS / "zero3.yaml"))


def test_a_missing_config_is_bad_input(capsys):
    assert main(["run", str(ROOT / "recipes" / "quickstart.yaml"), "--accelerate-config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_jobs_and_a_launch_exclude_each_other(capsys):
    config = str(CONFIGS / "cpu_ddp.yaml")
    assert main(["run", str(ROOT / "recipes" / "quickstart.yaml"), "--jobs", "2", "--accelerate-config", config]) == 2
    assert re.search("--jobs 2: .*one seed", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("left", "error", "message"),
    [
        (2, InputError, "refused their input"),
        (1, LaunchError, "ended with status 1: .* run the same command again"),
        (None, LaunchError, "ended with status 1"),
    ],
)
def test_a_launch_that_fails_says_what_kind_of_failure(left, error, message, monkeypatch):
    """The launcher itself ends with 1 whatever its processes ended with."""

    class Process:
        def __init__(self, command, env):
            if left is not None:
                monkeypatch.setenv(EXIT_CODE_FILE, env[EXIT_CODE_FILE])
                leave_exit_code(left)

        def wait(self):
            return 1

    monkeypatch.setattr("subprocess.Popen", Process)
    with pytest.raises(error, match=message):
        launch(str(CONFIGS / "cpu_ddp.yaml"), ["run", "recipe.yaml"])


def test_a_dry_run_shows_the_memory_of_one_of_the_processes(capsys):
    def memory(*words) -> dict:
        assert main(["run", str(ROOT / "recipes" / "quickstart.yaml"), "--dry-run", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)["memory_bytes"]

    alone, sharded = memory(), memory("--accelerate-config", str(CONFIGS / "cpu_fsdp2.yaml"))
    assert sharded["optimizer"] == pytest.approx(alone["optimizer"] / 2, rel=0.01)
    assert sharded["total"] < alone["total"]
