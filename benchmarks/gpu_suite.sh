#!/usr/bin/env bash
# All that only a GPU shows, in nine minutes at most, as one JSON:
#   benchmarks/gpu_suite.sh [OUT.json]
# Each part has its own limit; one that fails or runs out of time is told and
# does not stop the others. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-work_dirs/gpu_suite.json}")
python=${PYTHON:-python}
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
stock=configs/mv2d_xray/mv2d-xray_r50-stock-fpn_roi-volume_1xb1-24e_lidc.py
small=configs/mv2d_xray/mv2d-xray_small_roi-volume_3400i_mid-v2.py
papers=configs/mv2d_xray/mv2d-xray_r50_roi-volume_1xb1-24e_lidc.py
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

part() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    echo "== $name"
    timeout -k 5 "$limit" "$@" 2>&1 | tee "$parts/$name.log" | tail -n 15
    printf '{"status": %d, "seconds": %d}\n' "${PIPESTATUS[0]}" \
        $((SECONDS - begin)) > "$parts/$name.status"
}

speed() {  # NAME SECONDS ARGUMENTS...
    local name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" benchmarks/speed.py "$@" \
        --device "${DEVICE:-cuda}" --out "$parts/$name.json"
}

part environment 20 "$python" -c 'from mmengine.utils.dl_utils import collect_env
for entry in collect_env().items(): print(*entry, sep=": ")'
part ops 80 "$python" -m pytest -q tests/mv2d_xray/test_devices.py
speed train_10 75 train $papers --plain-config $stock --gpu-gb 16 --repeats 3
speed train_20 45 train $papers --plain-config $stock --gpu-gb 16 --views 20 \
    --repeats 2 --warm-up 1
speed infer_10 60 infer $papers --plain-config $stock --gpu-gb 16
speed infer_20 40 infer $papers --plain-config $stock --gpu-gb 16 --views 20 \
    --repeats 2 --warm-up 1
speed parts 60 parts $small --image-size 512 --repeats 3
speed render 60 render --views 2 --repeats 2
speed correlate 40 correlate --rois 100
part growth 60 "$python" benchmarks/growth.py --only views --most 3 \
    --repeats 2 --device "${DEVICE:-cuda}" --out-dir "$parts"
"$python" - "$parts" "$out" <<'END'
import json
import sys
from pathlib import Path

parts, out = map(Path, sys.argv[1:])
told = {}
for status in sorted(parts.glob('*.status')):
    result = status.with_suffix('.json')
    told[status.stem] = dict(
        json.loads(status.read_text()),
        log=status.with_suffix('.log').read_text()[-2000:],
        **(json.loads(result.read_text()) if result.exists() else {}))
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(json.dumps(told, indent=1) + '\n')
failed = [name for name, part in told.items() if part['status']]
print(f'{out}: {len(told)} parts' + (f', failed: {failed}' if failed else ''))
sys.exit(bool(failed))
END
