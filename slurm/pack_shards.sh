#!/usr/bin/env bash
#SBATCH --job-name=pack_shards
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pack_shards-%j.log
#
# Faces into shard sets, with the keys of data_shards.pack: sbatch slurm/pack_shards.sh faces=TABLE.csv out=SHARDS
set -euo pipefail
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
unset DATA_SHARDS_STAGE # what is packed lies on the shared file system, and is looked at there
exec python -m data_shards.pack "$@"
