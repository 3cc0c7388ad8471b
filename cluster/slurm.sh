#!/usr/bin/env bash
# One training on one or several Slurm nodes; it saves when its time is up or it is pre-empted, is requeued, and goes on.
#   sbatch cluster/slurm.sh configs/quickstart.yaml
#   sbatch --nodes=2 --gpus-per-node=8 cluster/slurm.sh configs/sd_grpo_qwen2_5_vl_3b.yaml data.yaml \
#       rollout.num_workers=4 learner.num_ranks=12 \
#       output_dir=/shared/runs cache_dir=/shared/cache
# The arguments are those of `dynframe train`. Options of sbatch that stand before the script come before those below.
# Submit from a checkout with its .venv, or from any folder where `dynframe` is on PATH; every node needs to see it, and data,
# models, output_dir, cache_dir and the home folder are on disks that all of them mount.
#SBATCH --job-name=dynframe
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@150
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# --signal: so many seconds before the end this script is told: trainer.stop_grace_s, in which the run saves, and 30 s.
set -euo pipefail

STOPPED=143   # exit code of a run that SIGTERM has stopped: it has saved
JOIN_S=300    # for all nodes to be in Ray's cluster

fail() { printf 'slurm.sh: %s\n' "$*" >&2; exit 2; }
# shellcheck disable=SC2016
RAY_STEP='trap "" TERM; ray start --block "$@"'   # SIGTERM, which goes to every step, ends the run alone: it saves first
JOINED='
import sys, time, ray
deadline = time.monotonic() + float(sys.argv[2])
ray.init(log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit(1)
    time.sleep(1)
'

step() { srun --overlap --ntasks=1 --nodes=1 --cpu-bind=none "$@"; }

requeue() {   # a job that was cancelled is no longer RUNNING; one that is out of time, or pre-empted with a grace, still is
    if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$STOPPED"
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "submit it: sbatch $0 CONFIG..."
[ $# -gt 0 ] || fail "name a configuration, as: sbatch $0 configs/quickstart.yaml"
told=   # whether Slurm has said that the job is to end
trap 'told=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM   # to every step: see RAY_STEP
# shellcheck source=/dev/null
[ ! -f .venv/bin/activate ] || . .venv/bin/activate
command -v dynframe >/dev/null || fail "no dynframe on PATH and no .venv in $PWD"

export RAY_USAGE_STATS_ENABLED=0   # nothing is sent to Ray's developers
export RAY_worker_niceness=0       # Ray starts workers at nice 15; 0: like any other process

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
if [ "${#nodes[@]}" -gt 1 ]; then
    export RAY_AUTH_MODE=token   # which all nodes find in the home folder
    ray get-auth-token --generate >/dev/null
    address=$(step --nodelist="${nodes[0]}" hostname --all-ip-addresses)
    address=${address%% *}
    port=$((20000 + SLURM_JOB_ID % 10000))
    step --nodelist="${nodes[0]}" bash -c "$RAY_STEP" ray --head --node-ip-address="$address" --port="$port" \
        --dashboard-host=127.0.0.1 --disable-usage-stats &
    for ((waited = 0; waited < JOIN_S; waited++)); do
        (: <"/dev/tcp/$address/$port") 2>/dev/null && break
        sleep 1
    done
    for node in "${nodes[@]:1}"; do
        step --nodelist="$node" bash -c "$RAY_STEP" ray --address="$address:$port" &
    done
    export RAY_ADDRESS=$address:$port
    step --nodelist="${nodes[0]}" python -c "$JOINED" "${#nodes[@]}" "$JOIN_S" ||
        { [ -z "$told" ] || requeue; fail "not all of ${nodes[*]} have joined Ray within $JOIN_S s"; }
fi

[ -z "$told" ] || requeue
step --nodelist="${nodes[0]}" dynframe train "$@" resume=auto &
run=$!
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do   # the signal ended the wait, not yet the run
    code=0
    wait "$run" || code=$?
done
[ "$code" -ne "$STOPPED" ] || requeue
exit "$code"
