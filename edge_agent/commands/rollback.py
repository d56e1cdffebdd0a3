"""`edgeloop rollback`: return to the previous model."""

from __future__ import annotations

from pathlib import Path

import click

from ._store_options import find_store, store_options


@click.command("rollback")
@store_options
@click.option("--reason", default="rolled back by hand", show_default=True, help="Reason to record.")
@click.option("--json", "as_json", is_flag=True, help="Print the new current model as JSON.")
def rollback_command(config: Path | None, root: Path, *, reason: str, as_json: bool) -> None:
    """Make the previous model current again.

    A running agent switches to it automatically. The model that was rolled back is recorded as failed and is not
    installed or activated again without --force.
    """
    import msgspec

    from ..store.model_store import ModelStore

    store = ModelStore(find_store(config, root).state)
    before = store.current()
    now = store.rollback(reason=reason)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(now), indent=2).decode())
    else:
        click.echo(f"{now}: current again, instead of {before}")
