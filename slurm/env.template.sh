# Facts about the cluster NAME. Copy to env-NAME.sh, keep what applies, and say: export CLUSTER_ENV=slurm/env-NAME.sh
# No hyperparameter, no data set, no secret: a token belongs into a file that only you can read.
# shellcheck shell=bash disable=SC2034

# Options of sbatch for each kind of job; they win over the #SBATCH lines of the scripts.
row_options=(--account=PROJECT --partition=gpu --gpus-per-node=1 --cpus-per-task=8 --mem=64G --time=12:00:00)
feature_options=(--account=PROJECT --partition=gpu --gpus-per-node=1 --cpus-per-task=8 --mem=64G)
report_options=(--account=PROJECT --partition=cpu)
pack_options=(--account=PROJECT --partition=cpu)

# What the plan may know of the cluster; rows then ask for as many GPUs as their backbone needs.
plan_options=(gpu_memory_gb=80 gpus_per_node=4)

# Software: modules first (they change PATH), then the environment.
set +u # the scripts of module are not made for it
module load python/3.11 cuda
set -u
# shellcheck source=/dev/null
source /PATH/TO/ENVIRONMENT/bin/activate

# Caches on a file system that all nodes see. Fetch weights once where there is a network, then work without one.
export HF_HOME=/SCRATCH/$USER/huggingface
export TORCH_HOME=/SCRATCH/$USER/torch
export MODEL_SEPARABILITY_CACHE=/SCRATCH/$USER/model-separability # weights out of published packages
export HF_HUB_OFFLINE=1

# Shards are read through a cache on the node's own disk, which its tasks share, where the shared file system is slow.
export DATA_SHARDS_STAGE=1
export DATA_SHARDS_CACHE=/LOCAL/$USER/shards
export DATA_SHARDS_CACHE_GB=500

# Several nodes: the network interface between them (ip -brief address).
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
