"""A folder of captures as a device leaves them: images, and the line of JSON beside each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2

from edge_agent.captures.folder import Capture, Captures
from edge_agent.messages import ModelId, timestamp
from edge_agent.preprocessing import Pixels

MODEL = ModelId("ground", "1", "ab" * 32)
START_NS = 1_780_000_000_000_000_000


def keep(
    folder: Path,
    images: Sequence[Pixels],
    labels: Sequence[str],
    *,
    classes: Sequence[str],
    camera: str = "door",
    device: str = "porch-pi",
    start_ns: int = START_NS,
) -> list[str]:
    """Captures of ``pictures``, a second apart, each guessed ``labels[i]``; the hashes of their files."""
    captures = Captures(folder, max_bytes=1e9, min_free_bytes=0)
    captures.index()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        rest = 0.45 / max(1, len(classes) - 1)
        scores = {name: 0.55 if name == label else round(rest, 4) for name in classes}
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        at_ns = start_ns + number * 1_000_000_000
        height, width = image.shape[:2]
        capture = Capture(
            1, device, camera, number, timestamp(at_ns), label, scores, "uncertain", MODEL, width, height, ""
        )
        assert captures.keep(capture, jpeg, at_ns) is None
    return [hash_of(path) for path in sorted(folder.rglob("*.jpg"))]


def hash_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    from hashlib import sha256

    return sha256(path.read_bytes()).hexdigest()
