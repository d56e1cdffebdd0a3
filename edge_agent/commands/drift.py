"""`edgeloop drift`: does the model on this device still fit what it sees?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._store_options import find_store, store_options

if TYPE_CHECKING:
    from ..monitoring.drift import CameraDrift, Compared


@click.command("drift")
@store_options
@click.option("--json", "as_json", is_flag=True, help="All of it, as JSON.")
def drift_command(config: Path | None, root: Path, *, as_json: bool) -> None:
    """Say of each camera whether the model still fits its scene.

    How sure it was of its frames in the last three days is compared with how sure it was of its test images, and in
    its first days here. Exits 1 where a camera is drifting: label some of its frames and retrain.
    """
    import msgspec

    from ..bundle import open_bundle
    from ..errors import StoreError
    from ..monitoring.drift import DeviceDrift, judge
    from ..monitoring.score_counts import DailyScoreCounts
    from ..store.model_store import ModelStore

    place = find_store(config, root)
    store = ModelStore(place.state)
    current = store.current()
    if current is None:
        raise StoreError(f"no model is installed in {place.state}; install one with: edgeloop install BUNDLE")
    manifest = open_bundle(Path(current.path)).manifest
    cameras = [
        judge(camera, days, manifest.metrics.seen, threshold=manifest.thresholds.enter)
        for camera, days in sorted(DailyScoreCounts(place.state).of(current.digest).items())
    ]
    if as_json:
        told = DeviceDrift(f"{current.name} {current.version}", current.digest, tuple(cameras))
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    elif not cameras:
        click.echo(f"{current.name} {current.version} has seen no frames yet; the agent notes them every quarter hour")
    for camera in () if as_json else cameras:
        click.echo("\n".join(lines(camera)))
    if any(camera.verdict == "drifting" for camera in cameras):
        raise click.exceptions.Exit(1)


def lines(camera: CameraDrift) -> list[str]:
    """A camera in words."""
    labels = ", ".join(f"{label} {100 * share:.0f} %" for label, share in list(camera.labels.items())[:4])
    return [
        f"{camera.camera}: {camera.verdict} ({camera.frames} frames in the last days)",
        f"  under the threshold {100 * camera.unsure:.0f} %; taken for {labels}",
        *(_compared("its test images", camera.test)),
        *(_compared("its first days here", camera.first)),
    ]


def _compared(what: str, found: Compared | None) -> list[str]:
    if found is None:
        return []
    return [f"  mean score {found.now:.2f}, on {what} {found.before:.2f}; stability index {found.index:.2f}"]
