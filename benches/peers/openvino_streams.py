"""OpenVINO GenAI under a load, in this process: it has no server of its own kind.

Loads a model once, says so on a line of its own, and then answers each line of standard
input, a load, with a report like that of `sconce bench`: the same prompts in the same
closed loop, with the same definitions of TTFT, TPOT and ITL, but without HTTP.
"""

import argparse
import json
import sys
import time

import openvino_genai


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a GGUF file or a folder with OpenVINO's form of a model")
    parser.add_argument("--max-num-seqs", type=int, required=True)
    parser.add_argument("--without-bf16", action="store_true", help="compute in f32")
    args = parser.parse_args()
    scheduler = openvino_genai.SchedulerConfig()
    # In GB; by itself it grows while it runs.
    scheduler.cache_size = 1
    scheduler.max_num_seqs = args.max_num_seqs
    # A step's tokens, as many as Sconce's.
    scheduler.max_num_batched_tokens = 512
    # What it chooses by itself on a processor without bf16 instructions.
    properties = {"INFERENCE_PRECISION_HINT": "f32"} if args.without_bf16 else {}
    pipeline = openvino_genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", properties)
    print("ready", flush=True)
    for line in sys.stdin:
        load = json.loads(line)
        try:
            for prompt in load["warmups"]:
                run(pipeline, [prompt], 1)
            report = run(pipeline, load["prompts"], load["concurrency"])
        except RuntimeError as error:
            report = {"failed": str(error)}
        print(json.dumps(report), flush=True)


def run(pipeline, prompts, concurrency):
    """All prompts, so many at once."""
    waiting = list(enumerate(prompts))[::-1]
    running, done = {}, []
    started = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < concurrency:
            number, prompt = waiting.pop()
            running[number] = Request(pipeline, number, prompt)
        pipeline.step()
        now = time.perf_counter()
        for number, request in list(running.items()):
            if request.read(now):
                done.append(running.pop(number))
    duration = time.perf_counter() - started
    tokenizer = pipeline.get_tokenizer()
    inputs = sum(tokenizer.encode(prompt["prompt"]).input_ids.shape[1] for prompt in prompts)
    outputs = sum(request.tokens for request in done)
    return {
        "max_concurrency": concurrency,
        "completed": len(done),
        "errors": {},
        "short_answers": sum(request.tokens < request.asked for request in done),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "duration_s": duration,
        "request_throughput": len(done) / duration,
        "output_throughput": outputs / duration,
        "total_token_throughput": (inputs + outputs) / duration,
        "ttft_ms": summary([request.times[0] - request.sent for request in done]),
        "tpot_ms": summary([request.tpot() for request in done if request.tokens > 1]),
        "itl_ms": summary([gap for request in done for gap in request.gaps()]),
        "e2el_ms": summary([request.times[-1] - request.sent for request in done]),
    }


class Request:
    """One prompt, and when its tokens came."""

    def __init__(self, pipeline, number, prompt):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = self.asked = prompt["max_tokens"]
        config.ignore_eos = True
        config.do_sample = False
        self.sent = time.perf_counter()
        self.times, self.tokens = [], 0
        self.handle = pipeline.add_request(number, prompt["prompt"], config)

    def read(self, now):
        """Takes what has come; whether that was all."""
        while self.handle.can_read():
            count = sum(len(output.generated_ids) for output in self.handle.read().values())
            if count:
                self.times.append(now)
                self.tokens += count
        return self.handle.get_status() != openvino_genai.GenerationStatus.RUNNING

    def tpot(self):
        return (self.times[-1] - self.times[0]) / (self.tokens - 1)

    def gaps(self):
        return [later - earlier for earlier, later in zip(self.times, self.times[1:])]


def summary(seconds):
    """Mean and percentiles in ms; between the two nearest ranks."""
    values = sorted(1e3 * value for value in seconds)
    if not values:
        return None

    def at(percent):
        rank = percent / 100 * (len(values) - 1)
        low = int(rank)
        high = min(low + 1, len(values) - 1)
        return values[low] + (values[high] - values[low]) * (rank - low)

    percentiles = {f"p{percent}": at(percent) for percent in (50, 90, 95, 99)}
    return {"mean": sum(values) / len(values)} | percentiles


if __name__ == "__main__":
    main()
