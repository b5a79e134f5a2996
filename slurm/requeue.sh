# Sourced by the jobs that requeue themselves.
# shellcheck shell=bash

# requeue JOB: run it again when this script has ended. A controller that is being restarted is asked again for a while.
requeue() {
    local _
    for _ in {1..30}; do
        scontrol requeue "$1" && return
        sleep 4
    done
    echo "error: job $1 could not be requeued; to go on, submit it again" >&2
    return 1
}

# to_end PID: wait for a command of ours through signals, which interrupt the wait and not the command; its exit status.
to_end() {
    local status=0
    wait "$1" || status=$?
    while kill -0 "$1" 2>/dev/null; do
        status=0
        wait "$1" || status=$?
    done
    return "$status"
}

# run_or_requeue COMMAND ...: run it to its end. USR1 says that the time limit comes near: it is passed on, and when the
# command has stopped, the job is requeued to go on; not for ever, since it may be work that no time limit lets end.
run_or_requeue() {
    local asked=0 command='' status=0 restarts=${SLURM_RESTART_COUNT:-0} job=$SLURM_JOB_ID
    # by array id and index: the last task has the array's own id as its job id, and that would requeue all tasks
    if [[ ${SLURM_ARRAY_JOB_ID:-} ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
    trap 'asked=1; [[ -z $command ]] || kill -USR1 "$command" || true' USR1
    "$@" &
    command=$!
    if ((asked)); then kill -USR1 "$command" || true; fi
    to_end "$command" || status=$?
    # 85: stopped, can go on; above 2 after a request: what has not learned to stop yet was killed by it
    if ((asked && status > 2)); then
        if ((restarts >= 20)); then
            echo "error: stopped after $restarts restarts, and not requeued again; give it more time" >&2
        else
            echo 'stopped, to be continued'
            requeue "$job"
        fi
    fi
    return "$status"
}
