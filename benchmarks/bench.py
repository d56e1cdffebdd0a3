"""Compares `edgeloop bench` with LiteRT's own benchmark, with a bare interpreter, and with a second run of itself.

    python -m benchmarks.bench BUNDLE [--threads 1,2] [--turns 5]

Each turn measures the following, each in a new process: LiteRT's tool (ai_edge_litert.tools.benchmark_litert_model), a
loop that calls only `Interpreter.invoke`, and two consecutive runs of `edgeloop bench`. The figures are medians over
all turns, and ratios of these medians.

The overhead of measuring is the additional time that a number of invokes takes if each is timed and its time stored.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edge_agent.bundle import open_bundle
from edge_agent.bundle.archive import MODEL
from edge_agent.inference.interpreter import Interpreter

from .support.figures import record

RUNS = 500
BARE = """
import statistics, sys, time
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=int(sys.argv[2]))
interpreter.allocate_tensors()
for _ in range(100): interpreter.invoke()
times = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter(); interpreter.invoke(); times.append(time.perf_counter() - start)
print(1000 * statistics.median(times))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.tflite"
        model.write_bytes(open_bundle(arguments.bundle).read(MODEL))
        for threads in map(int, arguments.threads.split(",")):
            compare(arguments.bundle, model, threads, arguments.turns, Path(folder))
        overhead(model, arguments.turns)


def compare(bundle: Path, model: Path, threads: int, turns: int, work: Path) -> None:
    found: dict[str, list[float]] = {"LiteRT's tool": [], "bare": [], "ours": [], "again": []}
    noisy = 0
    for _ in range(turns):
        found["LiteRT's tool"].append(tool_ms(model, threads, work))
        found["bare"].append(bare_ms(model, threads))
        for name in ("ours", "again"):
            median, notes = ours_ms(bundle, threads, work)
            found[name].append(median)
            noisy += bool(notes)
    ours = statistics.median(found["ours"])
    for name, medians in found.items():
        record(f"{threads} threads, {name}, invoke", statistics.median(medians), "ms")
    over_tool = ours / statistics.median(found["LiteRT's tool"])
    record(f"{threads} threads, ours over LiteRT's tool", over_tool, at_least=0.95, at_most=1.05)
    record(f"{threads} threads, ours over a bare loop", ours / statistics.median(found["bare"]))
    apart = [max(pair) / min(pair) - 1 for pair in zip(found["ours"], found["again"], strict=True)]
    record(f"{threads} threads, largest difference of two consecutive runs", 100 * max(apart), "%", at_most=5.0)
    print(f"{noisy} of {2 * turns} runs report that something disturbed them")


def tool_ms(model: Path, threads: int, work: Path) -> float:
    command = ["ai_edge_litert.tools.benchmark_litert_model", f"--model={model}", f"--num_threads={threads}"]
    command += [f"--num_runs={RUNS}", "--warmup_runs=100", f"--result_json={work / 'tool.json'}"]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("Inference (median)"))
    return float(line.split()[2])


def bare_ms(model: Path, threads: int) -> float:
    command = [sys.executable, "-c", BARE, str(model), str(threads), str(RUNS)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def ours_ms(bundle: Path, threads: int, work: Path) -> tuple[float, list[str]]:
    report = work / "ours.json"
    command = ["bench", str(bundle), "--threads", str(threads), "--seconds", "2", "--json", str(report)]
    subprocess.run([sys.executable, "-m", "edge_agent.cli", *command], capture_output=True, check=True)
    (steady,) = json.loads(report.read_text())["steady"]
    return float(steady["invoke"]["p50"]), list(steady["notes"])


def overhead(model: Path, turns: int) -> None:
    """Measure the overhead of timing each inference. Blocks with and without timing alternate in one process."""
    measured, plain = [], []
    with Interpreter(model.read_bytes(), threads=1) as loaded:
        for _ in range(100):
            loaded.invoke()
        for _ in range(10 * turns):
            start = time.perf_counter()
            for _ in range(50):
                loaded.invoke()
            plain.append(time.perf_counter() - start)
            times: list[float] = []
            start = time.perf_counter()
            for _ in range(50):
                before = time.perf_counter_ns()
                loaded.invoke()
                times.append((time.perf_counter_ns() - before) / 1e6)
            measured.append(time.perf_counter() - start)
    more = statistics.median(measured) / statistics.median(plain) - 1
    record("overhead of measuring", 100 * more, "%", at_most=1.0)


if __name__ == "__main__":
    main()
