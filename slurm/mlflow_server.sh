#!/usr/bin/env bash
#SBATCH --job-name=mlflow
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=7-00:00:00
#SBATCH --no-requeue
#SBATCH --output=mlflow-%j.log
#
# A tracking server, on a login node or as a job: bash slurm/mlflow_server.sh [OPTIONS OF mlflow server ...]
#
#   RUNS             folder whose mlflow.db is served (default: runs)
#   MLFLOW_STORE     database instead of that file, e.g. postgresql://HOST/NAME with the password in ~/.pgpass
#   MLFLOW_BIND      address (default: 127.0.0.1, which only this node can reach); another one needs a password
#   MLFLOW_BIND_PORT port (default: 5000)
#
# Any other address than loopback is served with mlflow's basic authentication, and only if MLFLOW_AUTH_CONFIG_PATH names
# its configuration and MLFLOW_FLASK_SERVER_SECRET_KEY is set: in a file that only you can read, never on a command line.
set -euo pipefail
# shellcheck source=slurm/env.sh
source "${CLUSTER_ENV:-slurm/env.sh}"

runs=${RUNS:-runs}
bind=${MLFLOW_BIND:-127.0.0.1}
port=${MLFLOW_BIND_PORT:-5000}
mkdir -p "$runs"
runs=$(realpath "$runs")
store=${MLFLOW_STORE:-sqlite:///$runs/mlflow.db}
if [[ $store =~ ://[^/@]*:[^/@]*@ || ${store,,} =~ [?\&][a-z]*(passw(or)?d|pwd)= ]]; then
    echo "error: MLFLOW_STORE holds a password, which ps would show; put it into ~/.pgpass" >&2
    exit 2
fi
options=()
if [[ $bind != 127.0.0.1 && $bind != localhost ]]; then
    if [[ -z ${MLFLOW_AUTH_CONFIG_PATH:-} || -z ${MLFLOW_FLASK_SERVER_SECRET_KEY:-} ]]; then
        echo "error: $bind can be reached by others; set MLFLOW_AUTH_CONFIG_PATH and MLFLOW_FLASK_SERVER_SECRET_KEY" >&2
        exit 2
    fi
    # by which names it may be called; others could be an attack on a browser (DNS rebinding)
    hosts="localhost:*,127.0.0.1:*"
    for name in $(hostname) $(hostname -f || true) $(hostname -I || true); do
        hosts+=",$name,$name:*"
    done
    options+=(--app-name basic-auth --allowed-hosts "$hosts")
fi
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # processes for jobs of its own kind, which nothing here uses
echo "http://$bind:$port serves ${store%%:*} on $(hostname)"
exec python -m mlflow server --host "$bind" --port "$port" --backend-store-uri "$store" \
    --artifacts-destination "$runs/mlartifacts" "${options[@]}" "$@"
