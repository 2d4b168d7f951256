"""What a client sees of a served model, one line of JSON a result.

    http_side.py company URL STREAMS PROMPT_LEN OUTPUT_LEN
    http_side.py metrics URL
"""

import concurrent.futures
import json
import random
import sys
import urllib.error
import urllib.request


def answer(url, prompt, output_len):
    body = {"model": "model", "prompt": prompt, "max_tokens": output_len, "temperature": 0}
    body |= {"ignore_eos": True}
    request = urllib.request.Request(
        url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error}: {error.read().decode(errors='replace')}")
    usage = answer["usage"]
    if usage["prompt_tokens"] != len(prompt) or usage["completion_tokens"] != output_len:
        sys.exit(f"{len(prompt)} prompt tokens and {output_len} asked for, counted: {usage}")
    return answer["choices"][0]["text"]


def company(url, streams, prompt_len, output_len):
    """Answers of prompts of many lengths, one after another and all at once."""
    generator = random.Random(3)
    lengths = [max(1, prompt_len * (i + 1) // streams) for i in range(streams)]
    prompts = [[generator.randrange(256) for _ in range(length)] for length in lengths]
    alone = [answer(url, prompt, output_len) for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        together = list(pool.map(lambda prompt: answer(url, prompt, output_len), prompts))
    same = sum(a == b for a, b in zip(alone, together))
    print(json.dumps({"answers": streams, "same_in_company": same}))
    # Products' sums depend on the number of rows, so near ties may fall either way, as a few
    # in a hundred tokens of random weights are; wrong keys or values leave no answer the same.
    if same < streams / 2:
        sys.exit(f"{same} of {streams} answers are the same alone and in company")


def metrics(url):
    """The counters of tokens, device time and energy."""
    text = urllib.request.urlopen(url + "/metrics", timeout=20).read().decode()
    wanted = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "device_seconds", "joules")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#") and any(name in line for name in wanted):
            name, value = line.rsplit(" ", 1)
            found[name] = float(value)
    print(json.dumps({"metrics": found}))


def main():
    command, url, *numbers = sys.argv[1:]
    if command == "company":
        company(url, *map(int, numbers))
    elif command == "metrics":
        metrics(url)
    else:
        sys.exit(f"unknown command {command}; see {__file__}")


if __name__ == "__main__":
    main()
