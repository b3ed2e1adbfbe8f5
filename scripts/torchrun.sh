#!/usr/bin/env bash
# Runs train.py under torchrun, with the settings that torchrun needs to restart workers. Arguments are passed to train.py.
#
#   PROCESSES=2 scripts/torchrun.sh trainer=ddp                          two processes on this machine (default: one per GPU)
#   NODES=2 RENDEZVOUS=first-node:29400 scripts/torchrun.sh trainer=ddp  run this on each of two nodes
#   NODES=1:2 …                                                          continues on one node while the other is down
#
# RESTARTS       maximum number of restarts of the workers on this node, 100 by default. Exit codes 76 (diverged) and 77
#                (no progress) are not restarted.
# IS_HOST        true on the node that RENDEZVOUS names, false on the others. Set it if hostnames are ambiguous.
# ADDRESS        address of this node. Set it if the other nodes cannot resolve its hostname.
# If the node that RENDEZVOUS names fails, the job ends on all nodes and must be started again.
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # otherwise, restarted ranks often fail to connect (pytorch issue 135712)

where=(--standalone)
if [[ -n ${RENDEZVOUS:-} ]]; then
  # a node is considered dead after three missed heartbeats; the others wait join_timeout seconds for it to return
  where=(--rdzv-backend=c10d --rdzv-endpoint="$RENDEZVOUS" --rdzv-id="${JOB:-stormproof}"
    --rdzv-conf="join_timeout=600,last_call_timeout=5,keep_alive_interval=5,keep_alive_max_attempt=3${IS_HOST:+,is_host=$IS_HOST}")
elif [[ ${NODES:-1} != 1 ]]; then
  echo "NODES=$NODES requires RENDEZVOUS=<first node>:<port>, with the same value on all nodes." >&2
  exit 2
fi
[[ -n ${ADDRESS:-} ]] && where+=(--local-addr="$ADDRESS")

exec torchrun --nnodes="${NODES:-1}" --nproc-per-node="${PROCESSES:-auto}" --max-restarts="${RESTARTS:-100}" "${where[@]}" \
  "$(dirname "${BASH_SOURCE[0]}")/../train.py" "$@"
