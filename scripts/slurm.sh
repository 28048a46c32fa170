#!/usr/bin/env bash
# A recipe on several machines under SLURM: one launcher on each, all processes connected to the first machine.
#
#   sbatch scripts/slurm.sh run recipes/llama-3.1-8b/full.yaml
#   CONFIG=accelerate_configs/zero3.yaml sbatch --nodes=4 scripts/slurm.sh run RECIPE section.field=value
#
# Arguments are those of llm-unlearn. The output directory must be one that all machines see. A job that is pre-empted, or
# whose time is up, writes a checkpoint and goes on from it when it is started again: SLURM does so after a pre-emption
# (--requeue); after its time is up, submit it again.
#
#   CONFIG             accelerate config, its numbers of machines and processes are overruled (default: multi_node.yaml)
#   GPUS_PER_NODE      processes on each machine (default: what SLURM gave, else 8)
#   LLM_UNLEARN_VENV   the environment (default: .venv in the checkout)
#   GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME   the network interface (default: the one that leads to the first machine)
#SBATCH --job-name=llm-unlearn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

# sbatch runs a copy of this file from its spool: the checkout is where it was submitted
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
export CONFIG=${CONFIG:-accelerate_configs/multi_node.yaml}
export GPUS_PER_NODE=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
export PYTHON=${LLM_UNLEARN_VENV:-$PWD/.venv}/bin/python
MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # not head, which would end scontrol
export MAIN_ADDRESS
export MAIN_PORT=${MAIN_PORT:-$((20000 + SLURM_JOB_ID % 20000))}

# what differs between the machines is expanded on each of them, the network interface to the first one among it
srun --kill-on-bad-exit=1 bash -c 'interface=$("$PYTHON" -m llm_unlearn.distributed.interface "$MAIN_ADDRESS")
[[ -z $interface ]] || export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
exec "$PYTHON" -m accelerate.commands.launch --config_file "$CONFIG" \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * GPUS_PER_NODE)) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" \
    -m llm_unlearn "$@"' llm-unlearn "$@"
