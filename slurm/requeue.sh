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
