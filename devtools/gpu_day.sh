#!/bin/sh
# Everything that only a GPU can show, in at most eight minutes, on a machine that is lent for a short time.
#
#     COMFYUI_PATH=ComfyUI sh devtools/gpu_day.sh OUT          on an NVIDIA card
#     COMFYUI_PATH=ComfyUI sh devtools/gpu_day.sh OUT tiny     the same steps on the CPU with tiny shapes, to try them
#
# Writes a file per step into OUT as it goes: what was measured when the time ran out is there. PYTHON names the
# interpreter. benchmarks/results/gpu.md is written by hand from these files.
set -u
out=${1:?a folder to write to}
mode=${2:-gpu}
python=${PYTHON:-python}
mkdir -p "$out"

step() { # seconds, name, command...
    limit=$1 name=$2
    shift 2
    echo "== $name"
    started=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.err"
    code=$?
    echo "$name: exit $code, $(($(date +%s) - started)) s" | tee -a "$out/summary.txt"
}

if [ "$mode" = tiny ]; then
    step 300 versions "$python" -c "import torch; print(torch.__version__)"
    step 600 training "$python" -m benchmarks.memory_plan --truth --tiny
    step 600 tests "$python" -m pytest tests/core/test_distill_memory.py -q -k "to_the_bit or noticed"
else
    step 20 versions nvidia-smi
    step 200 training "$python" -m benchmarks.memory_plan --truth --device cuda
    step 100 real_size_512 "$python" -m benchmarks.real_size --device cuda --models sd15 --size 512 --rounds 2
    step 80 real_size_1024 "$python" -m benchmarks.real_size --device cuda --models sdxl --size 1024 --rounds 1
    export PCM_DEVICE=cuda
    step 80 tests "$python" -m pytest tests/host/test_distill.py tests/host/test_distill_memory.py -q -m "not long" -x
fi
cat "$out/summary.txt"
