#!/usr/bin/env bash
# Every check and measurement that needs a GPU, in one call: correctness of the kernels,
# tokens against transformers, what each kernel reaches beside the machine's ceilings and
# PyTorch, the decode step of an 8B Llama beside its roofline, and serving over HTTP
# beside transformers' continuous batching.
#
#   benches/gpu/run.sh [--dry-run] [--out DIR] [STAGE...]
#
# Needs what benches/gpu/pack left in target/gpu, and a Python with PyTorch and
# transformers; no Rust and no network. Stages: checks tokens kernels steps serving
# report; all of them if none is named. DIR [default: benches/results/gpu] gets one log,
# one table and the plots. --dry-run walks every stage on a machine without a GPU, with
# this checkout's debug binaries and models of a few hundred weights.
set -euo pipefail
cd "$(dirname "$0")/../.."
root="$PWD"
dry=""
out="$root/benches/results/gpu"
stages=()
while (($#)); do
    case "$1" in
        --dry-run) dry=--dry-run ;;
        --out) out="$2"; shift ;;
        -*) echo "unknown flag $1; see $0" >&2; exit 2 ;;
        *) stages+=("$1") ;;
    esac
    shift
done
((${#stages[@]})) || stages=(checks tokens kernels steps serving report)
wants() { [[ " ${stages[*]} " == *" $1 "* ]]; }

work="$(mktemp -d)"
server=""
cleanup() {
    [[ -z "$server" ]] || kill "$server" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
mkdir -p "$out"
log="$out/run.log"
results="$out/results.jsonl"
: > "$results"
exec > >(tee "$log") 2>&1
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
# Notes a stage's results, each with the stage's name.
note() { python3 benches/gpu/note.py "$1" >> "$results"; }

if [[ -n "$dry" ]]; then
    cargo build --quiet --locked -p sconce -p sconce-gpu
    bin="$root/target/debug"
    device=cpu
    small="--layers 2 --hidden 128 --intermediate 256 --heads 2 --kv-heads 1 --vocab 512"
    large="$small"
    steps=(--batches 1 2 --context 20 --steps 4)
    streams=(1 2)
    serving=(--max-model-len 256)
    lengths=("20 4" "4 20")
    batches=(1 3)
    num_prompts=3
else
    bin="$work/bin"
    mkdir "$bin"
    for name in sconce sconce-gpu; do
        gunzip -c "target/gpu/$name.gz" > "$bin/$name"
        chmod +x "$bin/$name"
    done
    device=cuda
    small="--layers 16 --hidden 1024 --intermediate 4096 --heads 16 --kv-heads 4 --vocab 49152"
    large="--layers 32 --hidden 4096 --intermediate 14336 --heads 32 --kv-heads 8 --vocab 128256"
    steps=()
    streams=(1 8 32 128 256)
    serving=(--max-model-len 2304)
    lengths=("1024 128" "128 1024")
    batches=(1 8 64 256)
    num_prompts=256
    # cuBLAS lies among PyTorch's packages.
    site="$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
    libraries="$(find "$site/nvidia" -maxdepth 2 -name lib -type d 2>/dev/null | tr '\n' ':')"
    export LD_LIBRARY_PATH="$libraries/usr/local/nvidia/lib64:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}"
fi
gpu=("$bin/sconce-gpu")
[[ -z "$dry" ]] || gpu+=("$dry")

say "the machine"
uname -srm
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || echo "no nvidia-smi"
python3 benches/gpu/torch_side.py versions || [[ -n "$dry" ]]
"$bin/sconce" --version

if wants checks; then
    say "every kernel against its reference"
    # Without a GPU the tests run the same cases; here it is only that this way works.
    "${gpu[@]}" check ${dry:+--only embedding} | tee "$work/check"
    note checks < "$work/check"
    if [[ -z "$dry" ]] && command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            for case in embedding every_group rope gates order_of_threads; do
                say "compute-sanitizer, $tool, $case"
                compute-sanitizer --tool "$tool" --error-exitcode 9 "${gpu[@]}" check --only "$case" | tail -5
            done
        done
    fi
fi

if wants tokens; then
    say "greedy tokens"
    python3 benches/gpu/models.py $small --dir "$work/small" --prompts "$work/prompts.json" --num-prompts "$num_prompts"
    for batch in "${batches[@]}"; do
        "${gpu[@]}" tokens --model "$work/small" --prompts "$work/prompts.json" \
            --max-num-seqs "$batch" --max-tokens 16 > "$work/tokens-$batch"
    done
    python3 benches/gpu/torch_side.py tokens "$work" "${batches[@]}" | tee "$work/tokens"
    note tokens < "$work/tokens"
fi

if wants kernels; then
    say "what the kernels reach"
    python3 benches/gpu/torch_side.py ceilings $dry | tee "$work/ceilings"
    note ceilings < "$work/ceilings"
    "${gpu[@]}" kernels | tee "$work/kernels"
    note kernels < "$work/kernels"
fi

if wants steps || wants serving; then
    say "an 8B Llama of random weights"
    python3 benches/gpu/models.py $large --dir "$work/large"
    [[ -z "$dry" ]] && cp target/gpu/tokenizer*.json "$work/large/" || python3 benches/gpu/models.py --tokenizer "$work/large"
fi

if wants steps; then
    say "its decode step"
    "${gpu[@]}" steps --model "$work/large" "${steps[@]}" | tee "$work/steps"
    note steps < "$work/steps"
fi

if wants serving; then
    say "serving it"
    "$bin/sconce" serve "$work/large" --device "$device" --served-model-name large --port 0 \
        "${serving[@]}" > "$work/server.log" 2>&1 &
    server=$!
    for ((i = 0; i < 600; ++i)); do
        url="$(grep -o 'http://[^ /]*' "$work/server.log" | head -1 || true)"
        [[ -n "$url" ]] && break
        kill -0 "$server" 2>/dev/null || { cat "$work/server.log"; exit 1; }
        sleep 0.2
    done
    cat "$work/server.log"
    for pair in "${lengths[@]}"; do
        read -r input output <<< "$pair"
        for n in "${streams[@]}"; do
            "$bin/sconce" bench --base-url "$url" --model large --disable-tqdm \
                --max-concurrency "$n" --num-prompts "$((n * 2 + 2))" \
                --random-input-len "$input" --random-output-len "$output" \
                --save-result "$work/bench.json" > /dev/null
            python3 benches/gpu/note.py serving --bench "$work/bench.json" \
                "$n" "$input" "$output" | tee -a "$results"
        done
    done
    kill "$server" && wait "$server" 2>/dev/null || true
    server=""
    python3 benches/gpu/torch_side.py batching "$work/large" $dry | tee "$work/batching"
    note batching < "$work/batching"
fi

if wants report; then
    say "the table"
    python3 benches/gpu/report.py "$out" ${dry:+--dry-run}
fi
say "done"
