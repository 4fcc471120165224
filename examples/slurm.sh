#!/bin/bash
# Four nodes of eight GPUs: sbatch examples/slurm.sh radd-small --accumulate 16 --parallel fsdp
#SBATCH --job-name=unmask
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# exec: the signal reaches torchrun, which passes it on; each process saves and ends, within the 30 s that it waits
srun bash -c 'exec torchrun \
    --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$0:29500" --max-restarts 3 \
    -m unmask train "$@"' "$first" "$@" || status=$?
# Ended by the signal and not by an error: once more in the queue, to go on from there.
if [ "${status:-0}" -ne 0 ] && [ "$SECONDS" -gt 600 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "${status:-0}"
