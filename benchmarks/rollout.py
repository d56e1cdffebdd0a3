"""Measures a rollout in waves to many simulated devices, some of them faulty.

    python -m benchmarks.rollout BUNDLE [--devices 200] [--bad 5]

Each device has its own store and its own agent. The agent is restarted when it exits, as by systemd, and publishes to a
broker that all devices use. One SSH server forwards connections to the devices by name. BUNDLE is repacked as versions
1 and 2: the devices start with version 1, and version 2 is rolled out.

One faulty device does not answer, and one has an unusable store. The agents of all other faulty devices are killed
whenever they start a model that is on probation.

The benchmark needs about 100 MB per device. It uses only the loopback network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from edge_agent.bundle import open_bundle
from edge_agent.store.canary import CanaryLimits
from edge_agent.store.model_store import ModelStore
from tests.conftest import start_mosquitto
from tests.support.bundles import repacked
from tests.support.fleet import agents, fleet

from .support.figures import record

FPS = 3
"""Frame rate of each camera. It is low because two hundred agents share the cores of one machine."""
AT_ONCE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--bad", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeloop-rollout-") as work:
        measure(arguments.bundle, arguments.devices, arguments.bad, Path(work))


def measure(bundle: Path, count: int, bad: int, work: Path) -> None:
    names = [f"pi-{number:03d}" for number in range(count)]
    # All faulty devices are in the last wave, which tolerates 10 % of failures. In an earlier wave, a single faulty
    # device could stop the rollout.
    chosen = [
        names[number] for number in np.random.default_rng(1).choice(range(count // 10, count), bad, replace=False)
    ]
    gone, full, dying = chosen[:1], chosen[1:2], chosen[2:]
    old, new = (repacked(bundle, work / f"{version}.edgeloop", version=version) for version in "12")
    video = make_video(work / "video.avi")
    with fleet(work, names, unreachable=gone) as devices, start_mosquitto(work) as broker:
        print(f"{count} devices get {open_bundle(old).manifest.name} 1 ...", flush=True)
        first = ModelStore(devices.root / names[0] / "var/lib/edgeloop")
        first.install(old, signers=None, limits=CanaryLimits(threads=1))
        first.good()
        for name in names[1:]:
            source, target = devices.root / names[0] / "var", devices.root / name
            subprocess.run(["cp", "-a", str(source), str(target)], check=True)
        for name in full:
            (devices.root / name / "var/lib/edgeloop/incoming").write_text("")
        settings = {
            "cameras": {"door": {"source": str(video), "loop": True}},
            "mqtt": {"host": "127.0.0.1", "port": broker.port},
            "threads": 1,
        }
        with agents(devices, settings, dying=dying):
            wait_for_agents(work, count - len(dying), broker.port)
            print("all agents are online", flush=True)
            start = time.monotonic()
            command = ["deploy", "push", str(new), "--inventory", str(devices.inventory()), "--json"]
            command += ["-F", str(devices.ssh_config), "--timeout-s", "3600", "--at-once", str(AT_ONCE)]
            pushed = subprocess.run(
                [sys.executable, "-m", "edge_agent.cli", *command], stdout=subprocess.PIPE, text=True, check=False
            )
            took_s = time.monotonic() - start
        report = json.loads(pushed.stdout)
        record(f"rollout to {count} devices, {bad} of them faulty", took_s, "s")
        print(f"states: {dict(Counter(one['state'] for one in report['outcomes']))}")
        for one in report["outcomes"]:
            if one["state"] != "good":
                print(f"{one['host']}: {one['state']}, {one['text']}")
        current = {name: ModelStore(devices.root / name / "var/lib/edgeloop").current() for name in names}
        versions = Counter("none" if one is None else one.version for one in current.values())
        print(f"versions in the stores: {dict(versions)}; stopped: {report['stopped']}")
        named = {one["host"] for one in report["outcomes"] if one["state"] != "good"}
        record("faulty devices reported", len(named & set(chosen)), at_least=bad)
        record("working devices that did not get the model", len(named - set(chosen)), at_most=0)


def make_video(path: Path) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (160, 120))
    random = np.random.default_rng(2)
    for _ in range(FPS):
        writer.write(random.integers(0, 255, (120, 160, 3), np.uint8))
    writer.release()
    return path


def wait_for_agents(work: Path, count: int, port: int) -> None:
    """Wait until ``count`` agents have published their status."""
    command = ["mosquitto_sub", "-p", str(port), "-t", "edgeloop/+/status", "-F", "%t"]
    with open(work / "online", "wb") as file, subprocess.Popen(command, stdout=file) as listening:
        while len(set((work / "online").read_text().split())) < count:
            time.sleep(1)
        listening.terminate()


if __name__ == "__main__":
    main()
