#!/usr/bin/env bash
# Submit rows of a plan: bash slurm/submit_rows.sh PLAN ROWS [OPTIONS OF SBATCH ...]
#
# ROWS is a list as of sbatch --array: 0-99, or 3,7,2000-2010, or 0-29%8. Rows that ask for other resources go into
# arrays of their own, and since indices are limited (MaxArraySize) so do rows beyond, whose tasks count from a first
# row. Options: the cluster file's, the row's own, the command line's; the later ones win. Prints the ids of the arrays,
# a line each. With DRY_RUN=1 prints the commands instead, on stderr, and stand-ins for ids.
set -euo pipefail
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
# shellcheck source=slurm/submit.sh
source slurm/submit.sh

plan=$(realpath "$1") # jobs.status knows the jobs of a plan by it
rows=$2
options=("${@:3}")
name=$(basename "$(dirname "$plan")")
logs=$(dirname "$plan")/slurm
mkdir -p "$logs"

limit=$(scontrol show config 2>/dev/null | awk '$1 == "MaxArraySize" { print $3 }') || limit=1001 # Slurm's default
arrays=$(python -m jobs.arrays plan="$plan" rows="$rows" limit="$limit")
while IFS=$'\t' read -r first indices asked; do
    read -ra shape <<<"$asked"
    ((first)) && prefix=$first+ || prefix=
    submit --job-name="$name+$first" --array="$indices" --output="$logs/row-$prefix%a-%A.log" \
        "${row_options[@]}" "${shape[@]}" "${options[@]}" slurm/finetune_row.sh "$plan" "$first"
done <<<"$arrays"
