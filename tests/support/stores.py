"""What is expected of every store on a device."""

from __future__ import annotations

import os
from pathlib import Path

from edge_agent.bundle import open_bundle
from edge_agent.store.model_store import Installed, ModelStore


def version_of(one: Installed | None) -> str | None:
    """Version of a model; None for no model."""
    return None if one is None else one.version


def assert_sound(state: Path) -> None:
    """Links and notes agree, both links lead to whole bundles, and nothing half done is left."""
    status = ModelStore(state).status()
    for name, one in (("current", status.current), ("previous", status.previous)):
        if one is None:
            assert not os.path.lexists(state / name)
        else:
            assert (state / name).resolve() == Path(one.path)
            assert open_bundle(state / name).digest == one.digest
            assert one.canary is None or one.canary.passed
    inside = {path.name for path in (state / "bundles").iterdir()}
    assert inside == {Path(one.path).name for one in status.installed}
    assert {path.name for path in state.iterdir()} <= {
        "bundles",
        "current",
        "previous",
        "state.json",
        "store.lock",
        "incoming",
    }
