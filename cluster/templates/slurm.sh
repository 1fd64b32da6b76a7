#!/bin/bash
# Rendered by `replora launch --on slurm`: starts Ray on the allocation, runs the sweep, ends both.
#SBATCH --job-name=@{name}
#SBATCH --nodes=@{nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@{cpus}
@{options}#SBATCH --time=@{time}
#SBATCH --output=@{folder}/slurm-%j.log
#SBATCH --signal=B:TERM@@180
#SBATCH --requeue
set -euo pipefail
umask 077

config=@{config}
folder=@{folder}
port="${REPLORA_RAY_PORT:-@{port}}"
export PATH=@{path}:"$PATH"
export SRUN_CPUS_PER_TASK=@{cpus} # since Slurm 22.05 srun does not take it from sbatch
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
# Hosts are served by the jemalloc that Ray brings (docs/cluster.md).
export RAY_LD_PRELOAD_ON_WORKERS=1 MALLOC_CONF=@{heap}

# The token is made here, for this job alone; the script and the job's log do not hold it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/.ray-token-$SLURM_JOB_ID"
unset RAY_AUTH_TOKEN
scratch="/tmp/replora-$SLURM_JOB_ID" # short: sockets lie below it
seen="$folder/.nodes-$SLURM_JOB_ID"
pids=()

finish() {
  trap - EXIT TERM
  for pid in "${pids[@@]}"; do kill "$pid" 2>/dev/null || true; done
  wait || true
  rm -rf "$RAY_AUTH_TOKEN_PATH" "$seen" "$scratch"
}
trap finish EXIT
mkdir -p "$seen"
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"

# Every node must see the folder, and be fit.
srun --ntasks-per-node=1 sh -c ': >"$0/$(hostname)"' "$seen"
count="$(find "$seen" -type f | wc -l)"
if [ "$count" -ne "$SLURM_JOB_NUM_NODES" ]; then
  echo "$count of $SLURM_JOB_NUM_NODES nodes see $folder. Give --dir on storage that all of them share." >&2
  exit 3
fi
srun --ntasks-per-node=1 replora doctor --dir "$folder" >&2

head="${SLURMD_NODENAME:-$(hostname)}" # as Slurm calls this node
ip="${REPLORA_HEAD_IP:-$(hostname -I | cut -d' ' -f1)}"
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --block --node-ip-address="$ip" \
  --port="$port" --num-cpus=@{cpus} --num-gpus=@{gpus} --include-dashboard=false --temp-dir="$scratch" >&2 &
pids+=($!)
for _ in $(seq 120); do
  if (: >"/dev/tcp/$ip/$port") 2>/dev/null; then break; fi
  sleep 1
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --overlap --nodes="$((SLURM_JOB_NUM_NODES - 1))" --ntasks="$((SLURM_JOB_NUM_NODES - 1))" --exclude="$head" \
    ray start --block --address="$ip:$port" --num-cpus=@{cpus} --num-gpus=@{gpus} >&2 &
  pids+=($!)
fi

# Waits until all nodes have joined Ray, examines them, and runs the sweep. Three minutes before the end Slurm
# sends TERM: the sweep then checkpoints. Submitting this script again goes on where it ended.
python -m cluster.launch.drive "$config" --dir "$folder" --address "$ip:$port" \
  --nodes @{nodes} --gpus @{gpus} --cpus @{cpus} &
driver=$!
trap 'kill -TERM "$driver" 2>/dev/null || true' TERM
while :; do
  status=0
  wait "$driver" || status=$?
  kill -0 "$driver" 2>/dev/null || break # else a signal ended the wait, not the driver
done
exit "$status"
