"""What an accelerate config says of processes, sharding and offloading."""

from pathlib import Path

import pytest
from paths import ROOT

from llm_unlearn.distributed.topology import Topology, read_topology
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit

FOLDER = ROOT / "accelerate_configs"
EXPECTED = {
    "single_gpu": Topology(),
    "ddp": Topology(processes=8),
    "multi_node": Topology(processes=16, machines=2),
    "zero1": Topology(processes=8, sharding="zero1"),
    "zero2": Topology(processes=8, sharding="zero2"),
    "zero3": Topology(processes=8, sharding="zero3"),
    "fsdp2": Topology(processes=8, sharding="fsdp2"),
    "zero3_offload": Topology(processes=8, sharding="zero3", offload_optimizer=True, offload_weights=True),
    **{
        f"cpu_{name}": Topology(processes=2, sharding=name, use_cpu=True)
        for name in ("zero1", "zero2", "zero3", "fsdp2")
    },
    "cpu_ddp": Topology(processes=2, use_cpu=True),
}


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_what_its_name_says(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the DeepSpeed files are found from anywhere
    assert read_topology(path) == EXPECTED[path.stem]


def test_no_config_is_one_process():
    assert read_topology(None) == Topology() and Topology().share("weights") == 1.0


@pytest.mark.parametrize(
    ("sharding", "shares"),
    [
        ("none", (1, 1, 1)),
        ("zero1", (1, 1, 1 / 4)),
        ("zero2", (1, 1 / 4, 1 / 4)),
        ("zero3", (1 / 4,) * 3),
        ("fsdp2", (1 / 4,) * 3),
    ],
)
def test_what_each_stage_shards(sharding, shares):
    topology = Topology(processes=4, sharding=sharding)
    assert tuple(topology.share(part) for part in ("weights", "gradients", "optimizer")) == shares


def test_rows_are_shared_evenly_or_refused():
    assert Topology(processes=4).rows_per_device(8, "recipe.train.batch_size") == 2
    with pytest.raises(InputError, match=r"^recipe\.train\.batch_size: 6 rows.* 4 processes.*multiple of 4"):
        Topology(processes=4).rows_per_device(6, "recipe.train.batch_size")


def test_deepspeed_settings_may_stand_in_the_config_itself(tmp_path):
    path = write(
        tmp_path,
        "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 3\n"
        "  offload_optimizer_device: cpu\n  offload_param_device: none\n",
    )
    assert read_topology(path) == Topology(processes=2, sharding="zero3", offload_optimizer=True)


def test_fsdp_without_resharding_and_with_offloading(tmp_path):
    path = write(
        tmp_path,
        "distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {fsdp_version: 2, "
        "fsdp_reshard_after_forward: false, fsdp_offload_params: true}\n",
    )
    assert read_topology(path) == Topology(
        processes=2, sharding="fsdp2", reshard=False, offload_optimizer=True, offload_weights=True
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "a mapping"),
        ("distributed_type: TPU", "'TPU' is none of"),
        ("distributed_type: MULTI_CPU", "MULTI_GPU with use_cpu: true"),
        ("distributed_type: MULTI_GPU\nnum_processes: many", "num_processes: must be a whole number"),
        ("distributed_type: MULTI_GPU\nnum_processes: 0", "num_processes: must be a whole number"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: no.json}", "no file .*no.json"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 7}", "must be 0, 1, 2 or 3, is 7"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: 3", "expected a section"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", "fsdp_version: must be 2, is 1"),
    ],
)
def test_what_is_no_topology_is_refused_with_the_place(text, words, tmp_path):
    with pytest.raises(InputError, match=words):
        read_topology(write(tmp_path, text))


def test_a_damaged_deepspeed_file_is_named(tmp_path):
    write(tmp_path, "{", "zero.json")
    path = write(tmp_path, "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: zero.json}")
    with pytest.raises(InputError, match=r"zero\.json: not valid JSON"):
        read_topology(path)


def test_checkpoints_are_not_written_beside_the_training(tmp_path):
    path = write(tmp_path, "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: zero.json}")
    write(tmp_path, '{"checkpoint": {"tag_validation": "WARN"}, "zero_optimization": {"stage": 2}}', "zero.json")
    assert read_topology(path).sharding == "zero2"
    write(tmp_path, '{"checkpoint": {"writer": {"type": "fast", "decoupled": true}}}', "zero.json")
    with pytest.raises(InputError, match=r"^zero\.json: checkpoint\.writer: .*leave it out"):
        read_topology(path)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read_topology(tmp_path / "none.yaml")
