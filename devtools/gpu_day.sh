#!/bin/sh
# Everything that only a GPU can show, in at most eight minutes, on a machine that is lent for a short time.
#
#     COMFYUI_PATH=ComfyUI sh devtools/gpu_day.sh OUT                 on an NVIDIA card
#     COMFYUI_PATH=ComfyUI sh devtools/gpu_day.sh --rehearse OUT      the same steps on the CPU with tiny models
#
# Every part has a time limit of its own, and none may go past the end of all (GPU_DAY_SECONDS, 480): a part that fails
# or takes too long is a line in the report, and the next one runs. OUT/report.md grows part by part, so it is whole up
# to where the time ran out. PYTHON names the interpreter; GPU_DAY_SLOW=3 triples every limit, on a machine that others
# use. The exit code is the number of parts that failed.
# benchmarks/results/gpu.md is written by hand from the report.
set -u
mode=gpu
if [ "${1:-}" = --rehearse ]; then
    mode=rehearsal
    shift
fi
out=${1:?a folder to write to}
python=${PYTHON:-python}
slow=${GPU_DAY_SLOW:-1}
end=$(($(date +%s) + ${GPU_DAY_SECONDS:-480} * slow))
failed=0
mkdir -p "$out"
report=$out/report.md

head=$("$python" -c "import platform, torch
card = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
print(f'{card}, torch {torch.__version__}, Python {platform.python_version()}')" 2>/dev/null || echo "torch cannot be imported")
printf '# GPU day, %s\n\n%s, commit %s, begun %s\n' "$mode" "$head" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "$(date -u '+%Y-%m-%d %H:%M UTC')" >"$report"

part() { # seconds, name, command...
    limit=$(($1 * slow)) name=$2
    shift 2
    left=$((end - $(date +%s)))
    [ "$left" -lt "$limit" ] && limit=$left
    printf '\n## %s\n\n`%s`\n\n' "$name" "$*" >>"$report"
    if [ "$limit" -lt 5 ]; then
        echo "Not run: the time was over." | tee -a "$report"
        failed=$((failed + 1))
        return
    fi
    echo "== $name, at most $limit s"
    started=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.err" </dev/null
    code=$?
    took=$(($(date +%s) - started))
    case $code in
    0) said="Done in $took s." ;;
    124 | 137) said="Stopped after $took s: it took too long." ;;
    *) said="Failed with exit code $code after $took s." ;;
    esac
    {
        echo "$said"
        echo
        cat "$out/$name.txt"
        if [ "$code" -ne 0 ]; then
            echo
            echo '```'
            tr '\r' '\n' <"$out/$name.err" | grep -v 'it/s\]\|s/it\]' | tail -n 12
            echo '```'
        fi
    } >>"$report"
    [ "$code" -eq 0 ] || failed=$((failed + 1))
    echo "$name: $said"
}

if [ "$mode" = rehearsal ]; then
    part 30 versions "$python" -c "import torch; print(torch.__version__)"
    part 110 training "$python" -m benchmarks.memory_plan --truth --tiny
    part 90 streaming "$python" -m benchmarks.streaming_cost --models sd35 --rounds 1
    part 130 real_size "$python" -m benchmarks.real_size --tiny --models sd15 flux_fp8 wan_14b --rounds 1
    part 110 tests "$python" -m pytest tests/core/test_distill_memory.py -k "to_the_bit or noticed" -q -p no:cacheprovider
else
    part 20 versions nvidia-smi
    part 170 training "$python" -m benchmarks.memory_plan --truth --device cuda
    part 70 streaming "$python" -m benchmarks.streaming_cost --device cuda --models sd15 wan_1b --rounds 2
    part 80 real_size_512 "$python" -m benchmarks.real_size --device cuda --models sd15 --size 512 --rounds 2
    part 80 real_size_1024 "$python" -m benchmarks.real_size --device cuda --models sdxl --size 1024 --rounds 1
    export PCM_DEVICE=cuda
    part 80 tests "$python" -m pytest tests/host/test_distill.py tests/host/test_distill_memory.py -q -m "not long" -p no:cacheprovider
fi
printf '\n%s parts failed.\n' "$failed" | tee -a "$report"
exit "$failed"
