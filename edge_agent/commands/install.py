"""`edgeloop install`: a bundle into this device's store; and where that store is."""

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
@click.option("--no-activate", is_flag=True, help="Only store it; the current model stays.")
@click.option("--force", is_flag=True, help="Also a bundle that was rolled back on this device.")
@click.option("--allow-downgrade", is_flag=True, help="Also one older than the model that runs.")
@click.option("--json", "as_json", is_flag=True, help="What was installed, as JSON.")
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
    """Verify BUNDLE, prove it on this device, and make it the current model.

    A running agent goes over to it by itself, and back to the previous one should it fail. A bundle that is refused
    leaves the store as it was.
    """
    import msgspec

    from ..store.canary import CanaryLimits
    from ..store.model_store import ModelStore

    place = find_store(config, root)
    with _progress() as progress:
        installed = ModelStore(place.state).install(
            bundle,
            signers=place.signers,
            activate=not no_activate,
            force=force,
            allow_downgrade=allow_downgrade,
            limits=CanaryLimits(threads=place.threads, delegate=place.delegate),
            progress=progress,
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(installed), indent=2).decode())
    else:
        click.echo(f"{installed}: {proved(installed)}; {'stored' if no_activate else 'now current'}")


def proved(installed: Installed) -> str:
    """How a bundle did on its canary images, in a line."""
    proof = installed.proof
    if proof is None:
        return "its proof is lost; install it again to have one"
    where = f" on {Path(proof.delegate).name}" if proof.delegate else ""
    return (
        f"{100 * proof.accuracy:.0f} % of {proof.images} canary images recognised, "
        f"{100 * proof.expected_accuracy:.0f} % where it was made; {proof.p50_ms:.1f} ms each{where}, "
        f"{proof.memory_mb:.0f} MB"
    )


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal for a proof that takes longer than one cares to wait; nothing elsewhere."""
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
