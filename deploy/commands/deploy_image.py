"""`edgeloop deploy image`: prepares SD cards."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edge_agent.errors import ConfigError

from ..provisioning.over_ssh import DeviceSpec
from ..provisioning.payload import public_key
from ..provisioning.sd_card.disks import Disk, choose, disks, listed
from ..provisioning.sd_card.first_boot_config import PYTHONS, System, Wifi, psk
from ..provisioning.sd_card.prepare import Prepared, prepare_image, prepare_mounted
from . import _console

_PASSWORD = "EDGELOOP_WIFI_PASSWORD"  # noqa: S105  the name of a variable
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("image")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", type=_FILE, help="Write a prepared image to this file.")
@click.option("--write", "device", metavar="DEVICE", help="Write the prepared image to this card, such as /dev/sdb.")
@click.option(
    "--config", required=True, type=_FILE, help="agent.yaml for the device; the files it refers to are copied with it."
)
@click.option("--bundle", type=_FILE, help="Bundle of the first model.")
@click.option(
    "--trust",
    multiple=True,
    type=_FILE,
    help="Public key of an allowed signer; the device then rejects all other bundles. Can be given several times.",
)
@click.option("--dashboard", is_flag=True, help="Also install the packages that the dashboard needs.")
@click.option("--page", "dashboard", is_flag=True, hidden=True)  # former name of --dashboard
@click.option("--hostname", help="Host name of the device.")
@click.option("--user", default="pi", show_default=True, help="User who can log in with --ssh-key.")
@click.option("--ssh-key", multiple=True, type=_FILE, help="Public key for SSH logins. Can be given several times.")
@click.option(
    "--wifi", "ssid", metavar="SSID", help=f"Wi-Fi network; its password is read from {_PASSWORD} or prompted for."
)
@click.option("--wifi-country", metavar="CC", help="Country code for the Wi-Fi regulations, such as GB.")
@click.option("--wifi-open", is_flag=True, help="The network given with --wifi is open: it has no password.")
@click.option("--timezone", help="Time zone, such as Europe/London.")
@click.option(
    "--os", "codename", type=click.Choice(list(PYTHONS)), help="Release of Raspberry Pi OS; detected by default."
)
@click.option("--yes", is_flag=True, help="Overwrite the card without confirmation.")
def image_command(
    source: Path,
    out: Path | None,
    device: str | None,
    config: Path,
    bundle: Path | None,
    trust: tuple[Path, ...],
    hostname: str | None,
    user: str,
    ssh_key: tuple[Path, ...],
    ssid: str | None,
    wifi_country: str | None,
    timezone: str | None,
    codename: str | None,
    *,
    dashboard: bool,
    wifi_open: bool,
    yes: bool,
) -> None:
    """Prepare an SD card that sets up the device at its first boot, without any network.

    SOURCE is an image of Raspberry Pi OS (64-bit, Bookworm or Trixie; .img or .img.xz), or the folder where the boot
    partition of a flashed card is mounted. Packages, settings, keys and the model are stored on the boot partition
    until the first boot, which writes its log to edgeloop-setup.txt there.
    """
    mounted = source.is_dir()
    found: list[Disk] = [] if mounted or device is None else disks()
    if mounted and (out or device):
        raise ConfigError(f"{source} is a mounted card and is prepared in place; leave out --out and --write")
    if not mounted and (out is None) == (device is None):
        raise ConfigError(f"give --out FILE or --write DEVICE; {listed(disks())}")
    if not source.exists():
        raise ConfigError(f"{source}: no such file; expected an image of Raspberry Pi OS")
    keys = tuple(" ".join(part for part in public_key(path) if part) for path in ssh_key)
    system = System(hostname, user, keys, _wifi(ssid, wifi_country, is_open=wifi_open), timezone)
    system.check()
    spec = DeviceSpec(config, trust, bundle, dashboard)
    if device is not None:
        disk = choose(device, found)
        if not yes:
            click.confirm(f"Overwrite everything on {_console.printable(disk)}?", abort=True)
        out = Path(disk.path)
    with _console.preparing() as on_progress:
        if out is None:
            prepared = prepare_mounted(source, spec, system, codename, on_progress)  # type: ignore[arg-type]
        else:
            prepared = prepare_image(source, out, spec, system, codename, on_progress)  # type: ignore[arg-type]
    _show(prepared, out or source, has_bundle=bundle is not None, has_keys=bool(keys), trusts=bool(trust))


def _wifi(ssid: str | None, country: str | None, *, is_open: bool) -> Wifi | None:
    if ssid is None:
        if country or is_open:
            raise ConfigError("--wifi-country and --wifi-open need --wifi SSID")
        return None
    if country is None:
        raise ConfigError("--wifi also needs --wifi-country, such as GB; without it the Wi-Fi radio stays off")
    if is_open:
        return Wifi(ssid, None, country.upper())
    password = os.environ.get(_PASSWORD) or click.prompt(f"Password of {_console.printable(ssid)}", hide_input=True)
    return Wifi(ssid, psk(ssid, password), country.upper())


def _show(prepared: Prepared, place: Path, *, has_bundle: bool, has_keys: bool, trusts: bool) -> None:
    what = f"{prepared.written / 1e9:.2f} GB written and verified" if prepared.written is not None else "prepared"
    _console.out.print(
        f"{_console.plain(place)}: {what}; {prepared.codename.capitalize()}, provisioning payload of "
        f"{prepared.kit_bytes / 1e6:.0f} MB on the boot partition; the first boot takes some minutes"
    )
    if not has_bundle:
        _console.err.print(
            "no --bundle: the device waits for its first model; send one with edgeloop deploy push", style="yellow"
        )
    if not has_keys:
        _console.err.print("no --ssh-key: no SSH key is added; only existing logins will work", style="yellow")
    if not trusts:
        _console.err.print("no --trust KEY.pub: the device accepts unsigned bundles", style="yellow")
