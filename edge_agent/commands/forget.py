"""`edgeloop forget`: clear what a device that is gone has left at the broker."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import DEFAULT_PATH


@click.command("forget")
@click.argument("device")
@click.option(
    "--config",
    default=DEFAULT_PATH,
    show_default=True,
    type=click.Path(path_type=Path),
    help="agent.yaml of any device of the same broker.",
)
@click.option("--force", is_flag=True, help="Also clear the messages of a device that is online.")
def forget_command(device: str, config: Path, *, force: bool) -> None:
    """Clear the retained messages of DEVICE, a device that is gone for good.

    Home Assistant then removes the device and its entities. The name is that of `device` in the device's agent.yaml.
    """
    import re

    from ..config import load_settings
    from ..errors import BrokerError, ConfigError
    from ..mqtt.forget import forget

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", device):
        raise ConfigError(f"{device!r} is not the name of a device; expected letters, digits, - and _")
    settings = load_settings(config).mqtt
    cleared = forget(settings, device, force=force)
    if not cleared:
        raise BrokerError(
            f"the broker at {settings.host}:{settings.port} has no retained messages of {device} under "
            f"{settings.prefix}/; are the name and mqtt.prefix right?"
        )
    for topic in cleared:
        click.echo(topic)
    click.echo(f"cleared {len(cleared)} retained messages of {device}")
