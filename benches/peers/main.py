"""Sconce beside other engines: installs, converts, measures in turns, reports.

Each engine is started once and stopped (SIGSTOP) but for its own turns. A round
puts every engine under a cell before it goes on to the next cell, so that a
change of the machine meets all of them; ratios are taken within a round, and
the median over rounds is reported; after Ctrl-C, that of the rounds so far. Prompts differ from round to round, so no
engine's cache of earlier prompts helps it.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import engines
import install
import measure
import report

RESULTS = install.ROOT / "benches" / "results"


NO_BF16 = "--without-bf16-instructions"


def arguments(engine_keys):
    cells = [cell.key for cell in measure.CELLS]
    parser = argparse.ArgumentParser(prog="benches/peers/run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=engine_keys, help="engines [default: all]")
    parser.add_argument("--cells", nargs="+", choices=cells, help="loads [default: all]")
    parser.add_argument("--rounds", type=int, default=5, help="[default: 5]")
    parser.add_argument("--seed", type=int, default=1, help="of the first round's prompts")
    parser.add_argument(
        NO_BF16,
        action="store_true",
        help="as on a processor that has none: Sconce, llama.cpp and OpenVINO, with their own "
        "switches for it",
    )
    parser.add_argument(
        "--model",
        choices=[install.SMOLLM2, install.GEMMA],
        default=install.SMOLLM2,
        help=f"{install.GEMMA} is served by Sconce and llama.cpp [default: {install.SMOLLM2}]",
    )
    names = "[default: peers, peers-no-bf16, or peers-MODEL]"
    parser.add_argument("--name", help=f"of the files under benches/results {names}")
    args = parser.parse_args()
    default = "peers-no-bf16" if args.without_bf16_instructions else "peers"
    if args.model != install.SMOLLM2:
        default += f"-{args.model}"
    args.name = args.name or default
    return args


def named_model():
    """What `--model` says, which decides what there is to choose from."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default=install.SMOLLM2)
    name = parser.parse_known_args()[0].model
    return name if name in engines.ENDS else install.SMOLLM2


def machine(masked):
    """The machine in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    system = f"{platform.system()} {platform.release()}"
    has = "avx512_bf16" in install.cpu_flags()
    bf16 = "bf16 instructions" + (" masked" if masked and has else "")
    if not has:
        bf16 = "no " + bf16
    return f"{names[0]}, {bf16}, {engines.CORES} cores, {kib / 2**20:.0f} GiB, {system}"


def main():
    console = Console(stderr=True)
    (install.PEERS / "logs").mkdir(parents=True, exist_ok=True)
    (install.PEERS / "models").mkdir(parents=True, exist_ok=True)
    logs = install.PEERS / "logs"
    # Known before the other arguments, for it says which engines there are.
    masked = NO_BF16 in sys.argv[1:]
    chosen = engines.all_engines(named_model(), masked, logs / "install.log")
    args = arguments([engine.key for engine in chosen])
    chosen = [engine for engine in chosen if not args.only or engine.key in args.only]
    cells = [cell for cell in measure.CELLS if not args.cells or cell.key in args.cells]
    taking_part = {
        cell.key: [engine for engine in chosen if engine.cells is None or cell.key in engine.cells]
        for cell in cells
    }
    binary = install.sconce(logs / "install.log")
    results = {
        "machine": machine(masked),
        "bf16_masked": masked,
        "model": args.model,
        "date": time.strftime("%Y-%m-%d"),
        "rounds": args.rounds,
        "engines": {e.key: {"title": e.title, "label": e.label, "exact": e.exact} for e in chosen},
        "ceilings": [],
        "runs": [],
        "failures": [],
    }
    columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
    servers = {}
    with (
        Progress(*columns, console=console) as progress,
        open(RESULTS / f"{args.name}.log", "w") as log,
    ):
        task = progress.add_task("")

        def say(text):
            progress.update(task, description=text)
            if not console.is_terminal:
                console.print(text)

        def failed(engine, what, error):
            results["failures"].append({"engine": engine.key, "what": what, "error": str(error)})
            console.print(f"[red]{engine.title}, {what}: {error}")

        log.write(f"# {results['machine']}, {results['date']}\n")
        try:
            for engine in chosen:
                say(f"installing and starting {engine.title}")
                try:
                    engine.command(0)
                    server = measure.start(engine, logs)
                    servers[engine.key] = server
                    seconds = server.await_ready()
                    results["engines"][engine.key]["start_s"] = seconds
                    log.write(f"# {engine.title}: ready in {seconds:.2f} s\n")
                    # The first requests of some take long, and are nobody's figure.
                    warm = measure.Cell("warm-up", "", 2, 2, 16, 8)
                    measure.measure(binary, server, warm, 0, log)
                    server.signal(measure.signal.SIGSTOP)
                except (install.Failed, OSError) as error:
                    failed(engine, "start", error)
                    if engine.key in servers:
                        servers.pop(engine.key).end()
            for number in range(args.rounds):
                say(f"round {number + 1} of {args.rounds}: the machine's ceilings")
                results["ceilings"].append(measure.ceilings(log))
                for cell in cells:
                    turn = [e for e in taking_part[cell.key] if e.key in servers]
                    # Another one begins in each round.
                    first = number % max(len(turn), 1)
                    for engine in turn[first:] + turn[:first]:
                        say(f"round {number + 1} of {args.rounds}: {cell.title}, {engine.title}")
                        server = servers[engine.key]
                        try:
                            with server:
                                found = measure.measure(
                                    binary, server, cell, args.seed + 1000 * number, log
                                )
                        except install.Failed as error:
                            failed(engine, cell.key, error)
                            continue
                        run = {"round": number, "cell": cell.key, "engine": engine.key}
                        results["runs"].append(run | {"report": found})
                        if number == 0 and cell.key == "streams-32":
                            peak = server.peak_memory()
                            results["engines"][engine.key]["peak_bytes"] = peak
        except KeyboardInterrupt:
            console.print("[yellow]stopped; what was measured is reported")
        finally:
            for server in servers.values():
                server.end()
        table = report.table(results, cells)
        log.write(f"\n{table}\n")
    (RESULTS / f"{args.name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{args.name}.md").write_text(table + "\n")
    report.plot(results, cells, RESULTS / f"{args.name}.png")
    print(table)
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except install.Failed as error:
        sys.exit(f"error: {error}")
