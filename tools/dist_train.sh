#!/usr/bin/env bash
# Train with several processes of one machine, one for each GPU, or on CPUs:
#   tools/dist_train.sh CONFIG PROCESSES [ARGUMENTS OF tools/train.py]
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
fi
exec python -m torch.distributed.run --nproc_per_node "$2" \
    --master_port "${PORT:-29500}" "$(dirname "$0")/train.py" "$1" \
    --launcher pytorch "${@:3}"
