#!/usr/bin/env bash
#SBATCH --job-name=finetune_row
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#
# One row of a plan for each array task: sbatch --array=0-3 slurm/finetune_row.sh RUNS/NAME/plan.jsonl [FIRST_ROW]
# With N GPUs on a node the row runs as N processes there; without, as many as the experiment says.
set -euo pipefail

# A request to stop: srun passes it on to all processes on all nodes, as soon as there is a step. Repeated, since a
# process that is about to start does not listen yet.
asked=0 step=
ask() { while kill -USR1 "$step" 2>/dev/null; do sleep 5; done; }
trap 'asked=1; [[ -z $step ]] || ask &' USR1

# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
# shellcheck source=slurm/requeue.sh
source slurm/requeue.sh

plan=$1
row=$((${2:-0} + SLURM_ARRAY_TASK_ID))
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
restarts=${SLURM_RESTART_COUNT:-0}
log=$(readlink "/proc/$$/fd/1")
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Jobs that share a node must not share a port, nor a job with what may be left of its former life.
port=$((20000 + (SLURM_JOB_ID * 4 + restarts % 4) % 10000))

# One launcher on each node. Its variables are expanded there: here SLURM_NODEID is always 0.
# It starts with USR1 ignored, and what it starts inherits that: only jobs.run itself listens, its launcher would die.
# shellcheck disable=SC2016
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    bash -c '
        trap "" USR1
        exec python -m jobs.run plan="$1" row="$2" head="$3" port="$4" holder="$5" log="$6" \
            machines="$SLURM_JOB_NUM_NODES" machine_rank="$SLURM_NODEID" \
            ${SLURM_GPUS_ON_NODE:+processes="$SLURM_GPUS_ON_NODE"}
    ' jobs.run "$plan" "$row" "${hosts[0]}" "$port" "job $task, start $restarts" "$log" &
step=$!
if ((asked)); then ask & fi

status=0
to_end "$step" || status=$?

# 85 stopped after a checkpoint, 75 failed for the first time in this way; 1 and 2 are final. After a request to stop,
# any other status is what became of the step's other processes.
again=
((status == 85 || (asked && status > 2))) && again='stopped after a checkpoint, to be continued'
((status == 75)) && again='failed, to be tried once more'
if [[ $again ]]; then
    echo "row $row: $again"
    # by array id and index: the last task has the array's own id as its job id, and that would requeue all tasks
    requeue "$task"
fi
exit "$status"
