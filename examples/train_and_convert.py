"""Trains, converts and evaluates a model from Python: python examples/train_and_convert.py IMAGES WORK [--quick]

IMAGES is a folder with one subfolder per class. WORK is the folder for the results; it must not exist. With --quick,
only the head is trained, on small images. The library passes progress and messages to callbacks, so that a program can
show them in its own way. This example prints them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import converter
import trainer


def show(progress: trainer.Progress) -> None:
    if progress.done == progress.total:
        print(f"{progress.stage}: done")


def main() -> None:
    images, work = Path(sys.argv[1]), Path(sys.argv[2])
    quick = "--quick" in sys.argv[3:]
    recipe = trainer.Recipe(image_size=64, fine_tune="none") if quick else trainer.Recipe()
    work.mkdir()

    trained = trainer.train(images, work / "run", recipe, on_progress=show, on_message=print)
    low, high = trained.test_interval_95
    print(f"test accuracy {trained.test_accuracy:.3f}, 95 % interval {low:.3f} to {high:.3f}")

    # Limits on the accuracy that quantization may cost. The default is one point, which is less than one image if there
    # are fewer than 100 test images.
    limits = converter.GateLimits(max_drop=15, max_class_drop=100) if trained.test_images < 100 else None
    try:
        converted = converter.convert(trained.path, work / "model-1.edgeloop", limits=limits, on_message=print)
    except converter.GateError as error:
        sys.exit(str(error))
    print(f"int8: {converted.verdict.drop:+.1f} points lost, {converted.model_bytes / 1e6:.2f} MB")

    evaluated = trainer.evaluate(converted.path, images, run=trained.path)
    print(f"bundle on {len(evaluated.photos)} images it was not trained on: {evaluated.evaluation.accuracy:.3f}")


if __name__ == "__main__":
    main()
