#!/usr/bin/env bash
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=sweep-%j.log
#
# An overfitting sweep over all nodes of its job: sbatch --nodes=4 slurm/sweep.sh SWEEP.yaml [KEY=VALUE ...]
#
# Ray belongs to this job alone: its own port and folder, ended with it. A node that is lost takes its trials along, and
# they go on elsewhere; only the first node, where the sweep itself runs, must live. Before the time limit the job asks
# to be requeued, and goes on.
set -euo pipefail

# USR1: the time limit comes near, stop and be requeued. TERM: cancelled, or preempted, and then Slurm requeues it.
asked=0 stopping=0 sweep=
stop() {
    stopping=1
    [[ -z $sweep ]] || kill "$sweep" 2>/dev/null || true
}
trap 'asked=1; stop' USR1
trap stop TERM

# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"
# shellcheck source=slurm/requeue.sh
source slurm/requeue.sh

restarts=${SLURM_RESTART_COUNT:-0}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Jobs that share a node must not share a port, nor a job with what may be left of its former life.
port=$((20000 + (SLURM_JOB_ID * 4 + restarts % 4) % 10000))
folder=/tmp/ray-$SLURM_JOB_ID-$restarts # sockets lie in it: TMPDIR of a job is often too deep for them
address=$(python -c 'import ray; print(ray.util.get_node_ip_address())'):$port
# Whoever reaches the port could run anything as you: a secret of this job's own keeps others on the node out.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
# The cores are this job's own: trials need not give way to others (Ray's default is a niceness of 15).
export RAY_worker_niceness=0
export RAY_USAGE_STATS_ENABLED=0 RAY_CHDIR_TO_TRIAL_DIR=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0

options=(--block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=134217728
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 --disable-usage-stats)
ray start --head --port="$port" --include-dashboard=false \
    --temp-dir="$folder" "${options[@]}" &
started=($!)
until (exec 3<>"/dev/tcp/${address/://}") 2>/dev/null; do
    kill -0 "${started[0]}" || { echo "error: Ray did not start on ${hosts[0]}; see $folder/session_latest/logs" >&2; exit 1; }
    sleep 0.5
done
for host in "${hosts[@]:1}"; do # a step for each, so that none ends with another
    srun --nodes=1 --ntasks=1 --nodelist="$host" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        ray start --address="$address" "${options[@]}" &
    started+=($!)
done

finish() {
    trap '' EXIT USR1 TERM
    kill "${started[@]}" 2>/dev/null || true # srun and ray start pass it on
    wait || true
    rm -rf "$folder"
}
trap finish EXIT

python -m jobs.sweep "$@" address="$address" &
sweep=$!
((!stopping)) || stop
status=0
to_end "$sweep" || status=$?
if ((asked)); then
    echo "sweep: stopped, to be continued"
    finish
    requeue "$SLURM_JOB_ID"
fi
exit "$status"
