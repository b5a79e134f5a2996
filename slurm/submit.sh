# Sourced by the scripts that submit jobs.
# shellcheck shell=bash

# What Slurm told this job (memory, tasks, CPUs) must not reach the jobs it submits.
for name in "${!SLURM_@}"; do
    [[ $name == SLURM_CONF ]] || unset "$name"
done

# All or nothing: the script that was called first cancels what it, or one that it called, has submitted when it fails.
if [[ -z ${SUBMITTED:-} ]]; then
    SUBMITTED=$(mktemp)
    export SUBMITTED
    trap 'undo $?' EXIT
fi

undo() {
    if (($1)) && [[ -s $SUBMITTED ]]; then
        mapfile -t ids <"$SUBMITTED"
        echo "error: not everything could be submitted; cancelled again: ${ids[*]}" >&2
        scancel "${ids[@]}" || true
    fi
    rm -f "$SUBMITTED"
}

# submit OPTIONS ... SCRIPT ARGUMENTS ...: sbatch, and the job's id on stdout. With DRY_RUN=1 nothing is submitted: the
# command goes to stderr and a stand-in for the id, the job's name, to stdout.
submit() {
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf 'sbatch' >&2
        printf ' %q' "$@" >&2
        printf '\n' >&2
        printf '%s\n' "$@" | sed -n 's/^--job-name=\(.*\)/ID(\1)/p' | head -n 1
        return
    fi
    local id
    id=$(env -u SUBMITTED sbatch --parsable "$@") || return # said so, since within $(submit …) set -e is off
    id=${id%%;*} # "ID;CLUSTER" where there are several clusters
    echo "$id" >>"$SUBMITTED"
    echo "$id"
}
