"""Writes the JSON Schema of every message and command to docs/schemas/.

With ``--check``, it writes nothing and only checks whether the files there are up to date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec

from edge_agent.bench.report import Report
from edge_agent.captures.folder import Capture
from edge_agent.messages import Health, Info, Observation, Reply, Tunables
from edge_agent.mqtt.commands import VERBS

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"
MESSAGES: dict[str, type[msgspec.Struct]] = {
    "info": Info,
    "observation": Observation,
    "health": Health,
    "settings": Tunables,
    "reply": Reply,
    "capture": Capture,
    "bench": Report,
    **{f"cmd-{verb}": command for verb, command in VERBS.items()},
}


def schemas() -> dict[str, str]:
    """Return the content of each schema by file name."""
    return {f"{name}.json": _text(name, kind) for name, kind in MESSAGES.items()}


def _text(name: str, kind: type[msgspec.Struct]) -> str:
    schema = msgspec.json.schema(kind)
    if not name.startswith("cmd-"):
        # Later versions may add fields to messages, so readers must accept unknown fields. Commands do not allow them.
        for definition in schema["$defs"].values():
            definition.setdefault("additionalProperties", True)
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **schema}
    # msgspec ends patterns with Python's \Z. The regular expressions of JSON Schema have only $.
    return json.dumps(document, indent=2).replace("\\\\Z", "$") + "\n"


def main() -> int:
    """Write the schemas and return 0. With ``--check``, only return 1 if the files differ from the schemas, else 0."""
    expected = schemas()
    found = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    if "--check" in sys.argv:
        return int(found != expected)
    FOLDER.mkdir(exist_ok=True)
    for name in found.keys() - expected.keys():
        (FOLDER / name).unlink()
    for name, text in expected.items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
