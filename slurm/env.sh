# Facts about the cluster: the only place for them. Every script sources this file, on whatever node it runs.
#
# As it is, it fits a cluster whose default partition is right and whose nodes see this repository with its .venv.
# For another cluster copy env.template.sh to env-NAME.sh, edit it, and say: export CLUSTER_ENV=slurm/env-NAME.sh
# shellcheck shell=bash disable=SC2034

# Options of sbatch for each kind of job; they win over the #SBATCH lines of the scripts.
row_options=()     # one row of the plan: fine-tuning
feature_options=() # features and separability of one backbone
report_options=()  # evaluation and the report
pack_options=()    # packing of shards
plan_options=()    # what the plan may know of the cluster: gpu_memory_gb=80 gpus_per_node=4

# The environment: .venv of this repository, else the one that is active where you submit.
environment=$PWD/.venv
[[ -d $environment ]] || environment=${VIRTUAL_ENV:-$environment}
if [[ ! -f $environment/bin/activate ]]; then
    echo "error: no environment at $environment; run 'make setup' in the repository, or set it in ${CLUSTER_ENV:-slurm/env.sh}" >&2
    exit 2
fi
# shellcheck source=/dev/null
source "$environment/bin/activate"
