"""Which devices are meant: addresses, an inventory with groups, and what is wrong with either."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.fleet.inventory import Host, choose
from edge_agent.errors import ConfigError

INVENTORY = {
    "hosts": {
        "porch": "pi@10.0.0.7",
        "barn": {"address": "barn.local:2222", "settings": {"cameras": {"stall": {"source": 0}}}},
        "gate": "gate",
    },
    "groups": {"outside": ["porch", "gate"], "all-of-them": ["gate", "barn", "porch"]},
}


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "devices.yaml"
    path.write_text(yaml.safe_dump(INVENTORY, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("pi@porch.local", Host("pi@porch.local", "porch.local", "pi")),
        ("10.0.0.7:2222", Host("10.0.0.7:2222", "10.0.0.7", None, 2222)),
        ("pi@[fe80::1%eth0]:22", Host("pi@[fe80::1%eth0]:22", "fe80::1%eth0", "pi", 22)),
        ("fe80::1", Host("fe80::1", "fe80::1")),
        ("porch", Host("porch", "porch")),
    ],
)
def test_an_address_is_what_ssh_takes(address: str, host: Host) -> None:
    assert choose([address], None) == [host]


@pytest.mark.parametrize(
    "address", ["", "-oProxyCommand=evil", "a b", "pi@", "@porch", "porch:0", "porch:70000", "p;id"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an address; expected \[USER@\]HOST\[:PORT\]"):
        choose([address], None)


def test_names_and_groups_lead_to_hosts_in_the_order_given(inventory: Path) -> None:
    assert [host.name for host in choose([], inventory)] == ["porch", "barn", "gate"]
    assert [host.name for host in choose(["barn", "outside"], inventory)] == ["barn", "porch", "gate"]
    # Groups may overlap; a device is done once.
    assert [host.name for host in choose(["outside", "all-of-them"], inventory)] == ["porch", "gate", "barn"]
    barn = choose(["barn"], inventory)[0]
    assert (barn.host, barn.port, barn.settings) == ("barn.local", 2222, {"cameras": {"stall": {"source": 0}}})
    assert choose(["pi@10.0.0.99"], inventory)[0].host == "10.0.0.99"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["porch", "porch"], "porch is listed twice"),
        (["pi@10.0.0.7", "porch"], "the same device"),
        (["outsides"], "no host or group is called outsides; did you mean outside"),
        (["shed", "barm"], "no host or group is called shed.*; no host or group is called barm.*barn"),
    ],
)
def test_a_name_that_is_not_clear_is_refused_with_every_other(inventory: Path, names: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose(names, inventory)
    with pytest.raises(ConfigError, match="no device given; give HOST or --inventory FILE"):
        choose([], None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hosts": {}}, "hosts"),
        ({"host": {"porch": "x"}}, "host"),
        ({"hosts": {"porch": {"adress": "x"}}}, "adress"),
        ({"hosts": {"porch": "pi@10.0.0.7", "door": "pi@10.0.0.7"}, "groups": {}}, "the same device"),
        ({"groups": {"outside": ["porch", "porch"]}}, "outside: porch is listed twice"),
        ({"groups": {"outside": ["prch"]}}, "outside: no host is called prch; did you mean porch"),
        ({"groups": {"porch": ["gate"]}}, "porch is both a host and a group"),
        ({"hosts": {"../x": "porch"}}, "x"),
        ({"hosts": {"porch": "a b"}, "groups": {}}, "is not an address"),
    ],
)
def test_an_inventory_with_a_mistake_is_refused_whole(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text(yaml.safe_dump({**INVENTORY, **change}))
    with pytest.raises(ConfigError, match=says):
        choose([], path)
