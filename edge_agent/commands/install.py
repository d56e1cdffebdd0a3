"""`edgeloop install`: add a bundle to this device's store and activate it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._store_options import find_store, store_options

if TYPE_CHECKING:
    from ..store.model_store import Installed

_QUIET_S = 2.0


@click.command("install")
@click.argument("bundle", type=click.Path(path_type=Path))
@store_options
@click.option("--no-activate", is_flag=True, help="Store the bundle, but keep the current model.")
@click.option("--force", is_flag=True, help="Accept a bundle that was rolled back on this device.")
@click.option("--allow-downgrade", is_flag=True, help="Accept a bundle older than one that was accepted before.")
@click.option("--json", "as_json", is_flag=True, help="Print the installed bundle as JSON.")
def install_command(
    bundle: Path,
    config: Path | None,
    root: Path,
    *,
    no_activate: bool,
    force: bool,
    allow_downgrade: bool,
    as_json: bool,
) -> None:
    """Verify BUNDLE, run its canary test on this device, and make it the current model.

    A running agent switches to it automatically, and back to the previous model if it fails. A refused bundle leaves
    the store unchanged.
    """
    import msgspec

    from ..store.canary import CanaryLimits
    from ..store.model_store import ModelStore

    location = find_store(config, root)
    with _progress() as progress:
        installed = ModelStore(location.state).install(
            bundle,
            signers=location.signers,
            activate=not no_activate,
            force=force,
            allow_downgrade=allow_downgrade,
            limits=CanaryLimits(threads=location.threads, delegate=location.delegate),
            progress=progress,
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(installed), indent=2).decode())
    else:
        click.echo(f"{installed}: {canary_summary(installed)}; {'stored' if no_activate else 'now current'}")


def canary_summary(installed: Installed) -> str:
    """Summarize the canary test of an installed bundle in one line."""
    result = installed.canary
    if result is None:
        return "the result of its canary test was lost; install it again to repeat the test"
    delegate = f" on {Path(result.delegate).name}" if result.delegate else ""
    return (
        f"{100 * result.accuracy:.0f} % of {result.images} canary images correct, "
        f"{100 * result.expected_accuracy:.0f} % on the desktop; {result.p50_ms:.1f} ms each{delegate}, "
        f"{result.memory_mb:.0f} MB"
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on the terminal once the canary test has taken two seconds."""
    start = time.monotonic()
    bars: list[Any] = []

    def show(done: int, of: int) -> None:
        if not bars:
            if time.monotonic() - start < _QUIET_S or not sys.stderr.isatty():
                return
            bars.append(click.progressbar(length=of, label="canary images", file=sys.stderr))
            bars[0].__enter__()
        bars[0].update(done - bars[0].pos)

    try:
        yield show
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)
