#!/usr/bin/env bash
# train.py under torchrun, with what that needs to start its workers again. The words after it are train.py's.
#
#   PROCESSES=2 scripts/torchrun.sh trainer=ddp                          two processes of this machine (by default a GPU each)
#   NODES=2 RENDEZVOUS=first-node:29400 scripts/torchrun.sh trainer=ddp  on each of two nodes
#   NODES=1:2 …                                                          goes on with one while the other is away
#
# RESTARTS       how often this node starts its workers again, 100 by default; a run that diverged (76) or came no further
#                (77) ends it at once
# IS_HOST        true on the node that RENDEZVOUS names, false on the others, where names do not tell
# ADDRESS        of this node, as the others reach it, where its name is not known to them
# The node that RENDEZVOUS names must stay: without it all end, and whoever started them has to start them again.
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else a second start seldom finds the other ranks (pytorch issue 135712)

where=(--standalone)
if [[ -n ${RENDEZVOUS:-} ]]; then
  # a node that is gone is missed after three unanswered beats, and one that comes back is waited for so many seconds
  where=(--rdzv-backend=c10d --rdzv-endpoint="$RENDEZVOUS" --rdzv-id="${JOB:-stormproof}"
    --rdzv-conf="join_timeout=600,last_call_timeout=5,keep_alive_interval=5,keep_alive_max_attempt=3${IS_HOST:+,is_host=$IS_HOST}")
elif [[ ${NODES:-1} != 1 ]]; then
  echo "NODES=$NODES needs RENDEZVOUS=<first node>:<port>, the same on all of them" >&2
  exit 2
fi
[[ -n ${ADDRESS:-} ]] && where+=(--local-addr="$ADDRESS")

exec torchrun --nnodes="${NODES:-1}" --nproc-per-node="${PROCESSES:-auto}" --max-restarts="${RESTARTS:-100}" "${where[@]}" \
  "$(dirname "${BASH_SOURCE[0]}")/../train.py" "$@"
