"""Gives each result of a stage the stage's name; what is no JSON is left out.

    note.py STAGE < lines
    note.py STAGE --bench REPORT STREAMS INPUT_LEN OUTPUT_LEN
"""

import json
import sys


def lines():
    if "--bench" not in sys.argv:
        for line in sys.stdin:
            if line.startswith("{"):
                yield json.loads(line)
        return
    path, streams, input_len, output_len = sys.argv[3:7]
    with open(path) as file:
        report = json.load(file)
    yield {
        "streams": int(streams),
        "input_len": int(input_len),
        "output_len": int(output_len),
        "output_throughput": report["output_throughput"],
        "ttft_ms": report["ttft_ms"],
        "itl_ms": report["itl_ms"],
    }


for line in lines():
    print(json.dumps({"stage": sys.argv[1], **line}))
