"""`edgeloop run`: the agent as a process, from agent.yaml to a clean end."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import click

from ..config import DEFAULT_PATH


@click.command("run")
@click.option(
    "--config", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True, help="The agent's settings."
)
def run_command(config: Path) -> None:
    """Classify what the cameras see and publish labels over MQTT, until stopped."""
    run(config)


def run(config: Path) -> None:
    """Run the agent until its cameras end, SIGTERM or Ctrl-C.

    Raises:
        EdgeloopError: the settings, the bundle or the broker are not usable, or a camera failed.
    """
    from ..agent import Agent, rules_of
    from ..bundle import open_bundle
    from ..cameras.opencv import OpenCVCamera
    from ..classifier import Classifier
    from ..config import load_settings
    from ..errors import CameraError
    from ..mqtt import MqttPublisher
    from ..signature import verify_bundle

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    stop_requests: list[int] = []

    def take_note(number: int, _frame: object) -> None:
        # No more than that: anything that locks could deadlock with what it interrupts.
        stop_requests.append(number)
        signal.signal(number, signal.SIG_DFL)  # asked a second time, end at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, take_note)

    settings = load_settings(config)
    bundle = open_bundle(settings.bundle)
    if settings.allowed_signers is not None:
        verify_bundle(bundle, Path(settings.allowed_signers))
    cameras = {name: OpenCVCamera(camera) for name, camera in settings.cameras.items()}
    with (
        Classifier.from_bundle(bundle, threads=settings.threads) as classifier,
        MqttPublisher(settings.mqtt, settings.device, Path(settings.state) / "spool.sqlite") as publisher,
    ):
        with Agent(
            device=settings.device,
            bundle=bundle,
            classifier=classifier,
            cameras=cameras,
            publisher=publisher,
            rules=rules_of(bundle.manifest.thresholds, settings.decision),
            results=settings.mqtt.results,
            sources={name: camera.shown_source for name, camera in cameras.items()},
        ) as agent:
            while not stop_requests and not agent.wait(0.2):
                publisher.check()
        why = f"stopped by {signal.Signals(stop_requests[0]).name}" if stop_requests else "all cameras have ended"
        counts = "; ".join(
            f"{name}: {c.classified} of {c.captured} frames classified" for name, c in agent.counts.items()
        )
        logging.getLogger(__name__).info("%s (%s)", why, counts)
    if agent.failures:
        raise CameraError("; ".join(f"{name}: {error}" for name, error in agent.failures.items()))
