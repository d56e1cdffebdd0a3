"""`edgeloop drift`: check whether the model still fits the scenes of this device's cameras."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._store_options import find_store, store_options

if TYPE_CHECKING:
    from ..monitoring.drift import CameraDrift, Comparison


@click.command("drift")
@store_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def drift_command(config: Path | None, root: Path, *, as_json: bool) -> None:
    """Check for each camera whether the model still fits its scene.

    Compares the model's scores of the last three days with its scores on the test images and with those of its first
    days on this device. Exits with 1 if a camera is drifting: label some of its frames and retrain.
    """
    import msgspec

    from ..bundle import open_bundle
    from ..errors import StoreError
    from ..monitoring.drift import DeviceDrift, judge
    from ..monitoring.score_counts import DailyScoreCounts
    from ..store.model_store import ModelStore

    location = find_store(config, root)
    store = ModelStore(location.state)
    current = store.current()
    if current is None:
        raise StoreError(f"no model is installed in {location.state}; install one with: edgeloop install BUNDLE")
    manifest = open_bundle(Path(current.path)).manifest
    cameras = [
        judge(camera, days, manifest.metrics.score_counts, threshold=manifest.thresholds.enter)
        for camera, days in sorted(DailyScoreCounts(location.state).of(current.digest).items())
    ]
    if as_json:
        report = DeviceDrift(f"{current.name} {current.version}", current.digest, tuple(cameras))
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    elif not cameras:
        click.echo(
            f"no frames counted yet for {current.name} {current.version}; the agent saves its counts every 15 minutes"
        )
    for camera in () if as_json else cameras:
        click.echo("\n".join(lines(camera)))
    if any(camera.verdict == "drifting" for camera in cameras):
        raise click.exceptions.Exit(1)


def lines(camera: CameraDrift) -> list[str]:
    """Describe the result of one camera as lines of text."""
    labels = ", ".join(f"{label} {100 * share:.0f} %" for label, share in list(camera.labels.items())[:4])
    return [
        f"{camera.camera}: {camera.verdict} ({camera.frames} frames in the last days)",
        f"  below the threshold {100 * camera.unsure:.0f} %; classified as {labels}",
        *(_compared("its test images", camera.test)),
        *(_compared("its first days here", camera.first)),
    ]


def _compared(what: str, found: Comparison | None) -> list[str]:
    if found is None:
        return []
    return [f"  mean score {found.now:.2f}, on {what} {found.before:.2f}; stability index {found.index:.2f}"]
