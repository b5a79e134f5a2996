#!/usr/bin/env bash
#SBATCH --job-name=report
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=8G
#SBATCH --time=01:00:00
#
# The report of what is there: sbatch slurm/report.sh EXPERIMENT.yaml
set -euo pipefail
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
exec python -m jobs.report --config "$1"
