#!/usr/bin/env bash
#SBATCH --job-name=features
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#
# Features and separability of one backbone for each array task: sbatch --array=0-8 slurm/features_all.sh EXPERIMENT.yaml
# Before its time limit a task requeues itself, and goes on in the midst of a set.
set -euo pipefail
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
# shellcheck source=slurm/requeue.sh
source slurm/requeue.sh
run_or_requeue python -m jobs.measure experiment="$1" backbone="$SLURM_ARRAY_TASK_ID"
