# Sourced by the scripts that submit jobs.
# shellcheck shell=bash

# What Slurm told this job (memory, tasks, CPUs) must not reach the jobs it submits.
for name in "${!SLURM_@}"; do
    [[ $name == SLURM_CONF ]] || unset "$name"
done

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
    id=$(sbatch --parsable "$@")
    echo "${id%%;*}" # "ID;CLUSTER" where there are several clusters
}
