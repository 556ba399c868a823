#!/usr/bin/env bash
# Everything that needs a GPU, in one call. Run it in an environment with an extra cuda12 or cuda13, ml-dtypes, and to
# be compared with, torch for CUDA and liger-kernel:
#
#     benchmarks/gpu.sh [FOLDER [PART …]]
#
# A part that fails does not stop the others. Their tables are in FOLDER (gpu-results), one file each, and what they
# said in a .log beside it. Exit status 1: a part failed; the last lines say which. The parts, all of them by default:
#
#     versions    what is installed here
#     masks       known answers of Philox, and masks of dropout equal to the CPU's
#     rounding    normalizations of float16 and bfloat16, against float64
#     sweep       the gradient check of every operation, on the GPU
#     bandwidth   each operation, in fractions of the device's own copy, beside torch and Liger
#     halves      the same in bfloat16
#     graphs      the same as bandwidth, replayed as CUDA graphs
#     host        microseconds of the host for each eager operation
#
# PYTHON chooses the interpreter, DEVICE another GPU than the first (cuda:1).
set -uo pipefail

known=(versions masks rounding sweep bandwidth halves graphs host)
results=$(realpath -m -- "${1:-gpu-results}")
shift
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=("${known[@]}")
for part in "${parts[@]}"; do
    if [[ " ${known[*]} " != *" $part "* ]]; then
        printf 'There is no part %s; the parts are %s.\n' "$part" "${known[*]}" >&2
        exit 2
    fi
done
python=$(command -v -- "${PYTHON:-python}") || { printf 'There is no %s.\n' "${PYTHON:-python}" >&2; exit 2; }
python=$(realpath -s -- "$python")
device=${DEVICE:-cuda}
failed=()
cd "$(dirname "$0")/.." || exit

run() { # run PART FILE COMMAND…: its output goes to the file
    local part=$1 file=$2
    shift 2
    printf '== %s\n' "$part" >&2
    "$@" 2>&1 >"$results/$file" | tee "$results/$part.log" >&2
    if [[ ${PIPESTATUS[0]} -ne 0 ]]; then failed+=("$part"); fi
}

mkdir -p "$results" || exit
for part in "${parts[@]}"; do
    case $part in
    versions) run "$part" versions.txt "$python" cli.py doctor ;;
    masks) run "$part" masks.txt "$python" benchmarks/gpu_masks.py "$device" ;;
    rounding) run "$part" rounding.txt "$python" benchmarks/gpu_halves.py "$device" ;;
    sweep) run "$part" sweep.txt "$python" cli.py gradcheck --device "$device" --report "$results/sweep.json" ;;
    bandwidth)
        run "$part" bandwidth.md "$python" cli.py bench --device "$device" --format markdown \
            --save "$results/bandwidth.json"
        ;;
    halves)
        run "$part" halves.md "$python" cli.py bench --device "$device" --dtype bfloat16 --format markdown
        ;;
    graphs) run "$part" graphs.md "$python" cli.py bench --device "$device" --graph --format markdown ;;
    host) run "$part" host.md "$python" cli.py bench tape --device "$device" --format markdown ;;
    esac
done

printf '\nThe tables are in %s.\n' "$results" >&2
if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'FAILED: %s\n' "${failed[*]}" >&2
    exit 1
fi
