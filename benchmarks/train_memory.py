"""Compares the peak memory of `edgeloop train` with 1,000 and with 20,000 images.

    python -m benchmarks.train_memory [--counts 1000 20000]

Ten times per second, the anonymous memory of the process is read, that is, the memory that the process has allocated
itself. Pages of mapped files are not counted, because the kernel keeps them only while memory is free.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .support.figures import record
from .train_throughput import write_images


def peak_mib(command: list[str]) -> float:
    """Run a command and return the peak of its anonymous memory (RssAnon), in MiB."""
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        peak = max(peak, int(found[1]) if found else 0)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs=2, default=(1000, 20_000))
    arguments = parser.parse_args()
    peaks = {}
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_images(folder / "data", count)
            command = [
                sys.executable,
                "-m",
                "edge_agent.cli",
                "train",
                str(folder / "data"),
                "--out",
                str(folder / "run"),
            ]
            peaks[count] = peak_mib([*command, "--cache", str(folder / "cache"), "--image-size", "64", "--epochs", "1"])
    for count, peak in peaks.items():
        record(f"peak memory of training on {count} images", peak, "MiB")
    few, many = peaks.values()
    record("peak memory with more images over that with fewer", many / few)


if __name__ == "__main__":
    main()
