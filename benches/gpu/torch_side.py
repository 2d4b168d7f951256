"""What PyTorch and transformers say on the same machine, one line of JSON a result.

    torch_side.py versions [--dry-run]
    torch_side.py ceilings [--dry-run]
    torch_side.py attention [--dry-run]
    torch_side.py tokens FOLDER BATCH...
    torch_side.py batching MODEL [--dry-run]
    torch_side.py static MODEL [--dry-run]

Without PyTorch, which only a dry run may lack, what needs it is skipped, and says so.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path

try:
    import torch
except ImportError:
    torch = None

DRY = "--dry-run" in sys.argv


def report(**result):
    print(json.dumps(result), flush=True)


def device():
    if torch.cuda.is_available():
        return "cuda"
    if not DRY:
        sys.exit("PyTorch sees no GPU")
    return "cpu"


def normal(*shape):
    """Random numbers in bf16, where the measurements run."""
    return torch.randn(*shape, device=device(), dtype=torch.bfloat16)


def seconds(call, inputs):
    """The median time of a call, over inputs in turns."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        call(*inputs[0])
        return time.perf_counter() - started
    for i in range(5):
        call(*inputs[i % len(inputs)])
    torch.cuda.synchronize()
    times = []
    for repetition in range(9):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        calls = 12
        first.record()
        for i in range(calls):
            call(*inputs[i % len(inputs)])
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / calls)
    return statistics.median(times)


def versions():
    if torch is None:
        print("no PyTorch")
        # A dry run has no need of it.
        sys.exit(0 if DRY else 1)
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"PyTorch {torch.__version__}, transformers {transformers.__version__}, {gpu}")


def ceilings():
    if torch is None:
        print("skipped: no PyTorch")
        return
    where = device()
    on_gpu = where == "cuda"
    size = 1 << (31 if on_gpu else 20)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    time = seconds(lambda: target.copy_(source), [()])
    report(ceiling="copy", bytes_per_second=2 * size / time)
    del source, target
    n = 8192 if on_gpu else 64
    a, b = normal(n, n), normal(n, n)
    time = seconds(lambda: a @ b, [()])
    report(ceiling="gemm", operations_per_second=2 * n**3 / time)


def attention():
    """What PyTorch's attention takes for the kernels' cases."""
    if torch is None:
        print("skipped: no PyTorch")
        return
    on_gpu = device() == "cuda"
    attend = torch.nn.functional.scaled_dot_product_attention
    for length, group in [(1024, 4), (8192, 4), (8192, 8)] if on_gpu else [(24, 4)]:
        heads = 32 // group
        q = normal(1, 32, length, 128)
        k, v = normal(1, heads, length, 128), normal(1, heads, length, 128)
        time = seconds(lambda: attend(q, k, v, is_causal=True, enable_gqa=True), [()])
        operations = 4 * 32 * 128 * length * (length + 1) / 2
        name = f"prefill attention, {length}, GQA {group}"
        report(sdpa=name, seconds=time, operations_per_second=operations / time)
        del q, k, v
    contexts, batches = ([1024, 4096], [1, 8, 32, 128]) if on_gpu else ([40], [2])
    for group, context, batch in itertools.product([4, 8], contexts, batches):
        heads = 32 // group
        q = normal(batch, 32, 1, 128)
        k, v = normal(batch, heads, context, 128), normal(batch, heads, context, 128)
        time = seconds(lambda: attend(q, k, v, enable_gqa=True), [()])
        moved = 2 * batch * heads * context * 128 * 2
        name = f"decode attention, {batch} x {context}, GQA {group}"
        report(sdpa=name, seconds=time, bytes_per_second=moved / time)
        del q, k, v


def tokens(folder, batches):
    """Compares the tokens of every batch with each other and with transformers'."""
    prompts = json.loads((folder / "prompts.json").read_text())
    runs = {}
    for batch in batches:
        lines = (folder / f"tokens-{batch}").read_text().splitlines()
        runs[batch] = [json.loads(line)["tokens"] for line in lines if line.startswith("{")]
        if len(runs[batch]) != len(prompts):
            sys.exit(f"batch {batch} answered {len(runs[batch])} of {len(prompts)} prompts")
    first = runs[batches[0]]
    for batch in batches:
        same = sum(a == b for a, b in zip(first, runs[batch]))
        report(batch=int(batch), as_alone=same, prompts=len(prompts))
    if torch is None:
        print("skipped: no PyTorch, so no tokens of transformers")
        return
    from transformers import AutoModelForCausalLM

    where = device()
    model = AutoModelForCausalLM.from_pretrained(folder / "small", dtype=torch.float32)
    model = model.to(where).eval()
    same, count, worst = 0, 0, 0.0
    # A token counts as right after the prefix that was given, so that one close call
    # does not spoil what follows.
    with torch.inference_mode():
        for prompt, answer in zip(prompts, first):
            ids = torch.tensor([prompt + answer], device=where)
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
            best = logits.max(-1)
            for row, token in enumerate(answer):
                count += 1
                behind = float(best.values[row] - logits[row, token])
                same += behind == 0.0
                worst = max(worst, behind / float(logits[row].std()))
    report(transformers="float32", tokens=count, same=same, worst_margin_in_deviations=worst)
    # bf16 rounds logits to about a hundredth of their spread.
    if same < 0.9 * count or worst > 0.25:
        sys.exit(f"{same} of {count} tokens are transformers', the worst {worst} behind")


def served(model_dir, where):
    """A model as transformers is measured with it, in bf16."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    return model.to(where).eval()


def batching(model_dir):
    """Output tokens a second of transformers' continuous batching."""
    if torch is None:
        print("skipped: no PyTorch")
        return
    from transformers import GenerationConfig

    where = device()
    model = served(model_dir, where)
    if not hasattr(model, "generate_batch"):
        print("skipped: this transformers has no generate_batch")
        return
    cells = [(1, 1024, 128), (32, 1024, 128), (128, 1024, 128)] if where == "cuda" else [(2, 8, 4)]
    for streams, input_len, output_len in cells:
        torch.manual_seed(streams)
        vocab = model.config.vocab_size
        prompts = torch.randint(0, vocab, (streams, input_len)).tolist()
        config = GenerationConfig(
            max_new_tokens=output_len, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        started = time.perf_counter()
        outputs = model.generate_batch(inputs=prompts, generation_config=config, progress_bar=False)
        elapsed = time.perf_counter() - started
        answers = outputs.values() if isinstance(outputs, dict) else outputs
        generated = sum(len(answer.generated_tokens) for answer in answers)
        report(
            engine="transformers",
            streams=streams,
            input_len=input_len,
            output_len=output_len,
            output_throughput=generated / elapsed,
            complete=generated == streams * output_len,
        )


def static(model_dir):
    """A decode step of transformers with a static cache, recorded as a CUDA graph if that can be."""
    if torch is None:
        print("skipped: no PyTorch")
        return
    from transformers import StaticCache

    where = device()
    model = served(model_dir, where)
    for batch, context in [(1, 1024), (32, 1024)] if where == "cuda" else [(2, 8)]:
        cache = StaticCache(config=model.config, max_cache_len=context + 8)
        ids = torch.randint(0, model.config.vocab_size, (batch, context), device=where)
        with torch.inference_mode():
            positions = torch.arange(context, device=where)
            model(ids, past_key_values=cache, cache_position=positions, logits_to_keep=1)
            token, position = ids[:, :1].clone(), torch.tensor([context], device=where)

            def step(cache=cache, token=token, position=position):
                model(token, past_key_values=cache, cache_position=position)

            way, call = "static cache, eager", step
            if where == "cuda":
                try:
                    call, way = recorded(step), "static cache, CUDA graph"
                except Exception as error:  # It may synchronize, which no graph may.
                    print(f"no graph: {error}", file=sys.stderr)
            report(
                engine="transformers", batch=batch, context=context, way=way, step_seconds=seconds(call, [()])
            )


def recorded(call):
    """A call's kernels as a CUDA graph, to be replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def main():
    arguments = [argument for argument in sys.argv[2:] if argument != "--dry-run"]
    command = sys.argv[1]
    if command == "versions":
        versions()
    elif command == "ceilings":
        ceilings()
    elif command == "attention":
        attention()
    elif command == "tokens":
        tokens(Path(arguments[0]), arguments[1:])
    elif command == "batching":
        batching(Path(arguments[0]))
    elif command == "static":
        static(Path(arguments[0]))
    else:
        sys.exit(f"unknown command {command}; see {__file__}")


if __name__ == "__main__":
    main()
