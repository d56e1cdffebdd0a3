"""Classifies image files: python examples/classify.py birds-3.edgeloop robin.jpg ..."""

from __future__ import annotations

import sys

import edge_agent


def main() -> None:
    bundle, *images = sys.argv[1:]
    with edge_agent.open(bundle) as model:
        for path in images:
            label, score = model.classify(edge_agent.read_image(path)).best
            print(f"{path}: {label} ({score:.2f})")


if __name__ == "__main__":
    main()
