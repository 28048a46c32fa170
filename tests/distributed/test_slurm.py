"""scripts/slurm.sh: two launchers that find each other, as on two machines, with a stand-in for SLURM's commands."""

import json
import os
import stat
import sys

import pytest
from launched import ENVIRONMENT, run_launched
from paths import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SRUN = """#!/usr/bin/env bash
# two "machines", which are this one
[[ $1 == --kill-on-bad-exit=1 ]] && shift
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@"
wait "$other"
"""
SCONTROL = """#!/usr/bin/env bash
printf '127.0.0.1\\nelsewhere\\n'
"""


@pytest.mark.parametrize("config", ["cpu_ddp", "cpu_zero2"])
def test_two_launchers_make_one_run(config, tmp_path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    environment = {
        "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_SUBMIT_DIR": str(ROOT),
        "GPUS_PER_NODE": "1",
        "LLM_UNLEARN_VENV": sys.prefix,
        "CONFIG": f"accelerate_configs/{config}.yaml",
    }
    small = [
        "data.train_size=40",
        "data.heldout_size=10",
        "data.test_size=10",
        "pretrain.texts=50",
        "pretrain.epochs=1",
        "train.epochs=1",
        'unlearn.methods={"gradient_descent": null}',
        "unlearn.budgets=[1.0]",
        f"output_dir={tmp_path / 'run'}",
    ]
    run_launched(["bash", "scripts/slurm.sh", "run", "recipes/quickstart.yaml", "--quiet", *small], **environment)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert (tmp_path / "run" / "report.md").is_file()
