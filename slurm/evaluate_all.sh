#!/usr/bin/env bash
#SBATCH --job-name=evaluate_all
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=evaluate_all-%j.log
#
# Score and evaluate what is trained, without training: sbatch slurm/evaluate_all.sh EXPERIMENT.yaml
#
# Rows do this themselves when they have been trained. This is for those that were cut off there, and for all of them
# when the experiment has got a further unseen set. A row that is done costs nothing, one that is running is left alone.
set -euo pipefail
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
# shellcheck source=slurm/requeue.sh
source slurm/requeue.sh
plan=$(python -m jobs.plan --config "$1" "${plan_options[@]}")
run_or_requeue python -m jobs.run plan="$plan" rows=all train=false
