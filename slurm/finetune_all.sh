#!/usr/bin/env bash
#SBATCH --job-name=finetune_all
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=00:30:00
#SBATCH --no-requeue
#SBATCH --output=finetune_all-%j.log
#
# Fine-tune every backbone of an experiment, one array task each, then write the report. From the repository's root:
#
#   sbatch slurm/finetune_all.sh [EXPERIMENT.yaml [OPTIONS OF SBATCH FOR THE ROWS ...]]
#
# This job only makes the plan and submits. Where jobs may not submit jobs, run it on the login node with bash. The rows
# wait for the job ROWS_AFTER and the report for REPORT_AFTER as well, if these are set. With DRY_RUN=1 it prints what it
# would submit. After the last row evaluate_all.sh looks for rows that were trained and not scored to the end.
set -euo pipefail
if [[ ! -f slurm/finetune_row.sh ]]; then
    echo "error: no slurm/finetune_row.sh in $PWD; submit from the repository's root" >&2
    exit 2
fi
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
# shellcheck source=slurm/submit.sh
source slurm/submit.sh

experiment=${1:-jobs/configs/quickstart.yaml}
plan=$(python -m jobs.plan --config "$experiment" "${plan_options[@]}")
experiment=$(dirname "$plan")/experiment.yaml # as it is now: what is edited later is of no concern to these jobs
total=$(wc -l <"$plan")
rows=0-$((total - 1))
options=()
if [[ ${ROWS_AFTER:-} ]]; then
    options+=(--dependency="afterok:$ROWS_AFTER" --kill-on-invalid-dep=yes)
fi
for option in "${@:2}"; do
    case $option in
    --array=*) rows=${option#--array=} ;; # of rows, not of tasks: submit_rows.sh makes arrays of them
    *) options+=("$option") ;;
    esac
done

logs=$(dirname "$plan")/slurm
if ((total == 0)); then # separability alone
    after=${REPORT_AFTER:-${ROWS_AFTER:-}}
    report=$(submit --job-name=report ${after:+--dependency="afterany:$after"} \
        --output="$logs/report-%j.log" "${report_options[@]}" slurm/report.sh "$experiment")
    echo "rows     none: no backbone of $experiment has a seed to fine-tune"
    echo "report   job $report"
    exit
fi
submitted=$(bash slurm/submit_rows.sh "$plan" "$rows" "${options[@]}")
arrays=${submitted//$'\n'/,}
evaluation=$(submit --job-name=evaluate_all --dependency="afterany:${arrays//,/:}" \
    --output="$logs/evaluate_all-%j.log" "${report_options[@]}" slurm/evaluate_all.sh "$experiment")
report=$(submit --job-name=report --dependency="afterany:$evaluation${REPORT_AFTER:+:$REPORT_AFTER}" \
    --output="$logs/report-%j.log" "${report_options[@]}" slurm/report.sh "$experiment")
echo "rows     job $arrays, for rows $rows of the $total in $plan"
echo "evaluate job $evaluation, after the last row"
echo "report   job $report, after that"
echo "follow   squeue --jobs=$arrays,$evaluation,$report"
echo "         python -m jobs.status $experiment"
echo "         tail -F $logs/*.log"
