#!/usr/bin/env bash
#SBATCH --job-name=benchmark
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=00:30:00
#SBATCH --no-requeue
#SBATCH --output=benchmark-%j.log
#
# The whole benchmark of an experiment: features and fine-tuning of every backbone, evaluation, then the report.
#
#   sbatch slurm/benchmark.sh [--pack 'KEY=VALUE ...'] [EXPERIMENT.yaml [OPTIONS OF SBATCH FOR THE ROWS ...]]
#   bash slurm/benchmark.sh --dry-run [...]      prints exactly what would be submitted
#
# --pack makes the shard sets first, with these keys of data_shards.pack: --pack 'faces=TABLE.csv out=SHARDS'.
# This job only makes the plan and submits. Where jobs may not submit jobs, run it on the login node with bash.
set -euo pipefail
if [[ ! -f slurm/finetune_all.sh ]]; then
    echo "error: no slurm/finetune_all.sh in $PWD; submit from the repository's root" >&2
    exit 2
fi
pack=()
while [[ ${1:-} == --* ]]; do
    case $1 in
    --dry-run) export DRY_RUN=1 ;;
    --pack) read -ra pack <<<"${2:?what to pack}" && shift ;;
    *) echo "error: unknown option $1; known: --dry-run, --pack" >&2 && exit 2 ;;
    esac
    shift
done
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
# shellcheck source=slurm/submit.sh
source slurm/submit.sh

experiment=${1:-jobs/configs/quickstart.yaml}
plan=$(python -m jobs.plan --config "$experiment" "${plan_options[@]}")
experiment=$(dirname "$plan")/experiment.yaml # as it is now: what is edited later is of no concern to these jobs
backbones=$(python -m jobs.measure experiment="$experiment")
logs=$(dirname "$plan")/slurm
mkdir -p "$logs"
after=()
if ((${#pack[@]})); then
    shards=$(submit --job-name=pack_shards --output="$logs/pack_shards-%j.log" "${pack_options[@]}" \
        slurm/pack_shards.sh "${pack[@]}")
    echo "shards   job $shards"
    after=(--dependency="afterok:$shards" --kill-on-invalid-dep=yes) # without data nothing else can be
    export ROWS_AFTER=$shards
fi
features=$(submit --job-name=features --array="0-$((backbones - 1))" --output="$logs/features-%a-%A.log" \
    "${after[@]}" "${feature_options[@]}" slurm/features_all.sh "$experiment")
echo "features job $features, for $backbones backbones; follow: tail -F $logs/features-*.log"
REPORT_AFTER=$features bash slurm/finetune_all.sh "$experiment" "${@:2}"
