#!/usr/bin/env bash
#SBATCH --job-name=features
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Features and separability of one backbone for each array task: sbatch --array=0-8 slurm/features_all.sh EXPERIMENT.yaml
# A task that is requeued does only what is missing.
set -euo pipefail
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
exec python -m jobs.measure experiment="$1" backbone="$SLURM_ARRAY_TASK_ID"
