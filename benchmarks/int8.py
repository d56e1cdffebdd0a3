"""Measures the accuracy and latency of int8 models from two quantizers and from `edgeloop convert`.

    python -m benchmarks.int8 RUN...

Each RUN is a directory written by `edgeloop train`. The images of the run must still be where they were at that time.

The quantizers are the TensorFlow Lite converter, with uint8 and with float32 scores, and the LiteRT quantizer, also
with both. Every row of the table is one model, evaluated on the test split of the run with the device's classifier. The
inferences of all models are timed in turn. The column "speed" is the median ratio of the float32 latency to the model's
latency.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from converter.gate import GateLimits, latencies_ms
from converter.pipeline import convert
from converter.quantization import quantize
from converter.quantization.calibration import Representative, calibrate, of_run
from converter.run_reader import Run, open_run
from converter.tflite import float_model
from converter.tflite.xnnpack import with_fast_operations
from edge_agent.bundle import open_bundle
from edge_agent.bundle.archive import MODEL
from edge_agent.errors import GateError
from edge_agent.inference.classifier import Classifier
from edge_agent.inference.evaluation import Evaluation, evaluate_together
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels

from .support.figures import record

ROUNDS = 5


def by_tensorflow(run: Run, scratch: Path, pixels: Pixels, output: str) -> bytes:
    """Quantize the model of a run with the TensorFlow Lite converter.

    Args:
        run: the run.
        scratch: folder that may contain the SavedModel of the run; otherwise, the one in the run directory is used.
        pixels: images that the converter is calibrated with.
        output: dtype of the scores: uint8 or float32.
    """
    import tensorflow as tf

    def feed() -> Iterator[list[Any]]:
        for image in pixels:
            yield [image[np.newaxis].astype(np.float32)]

    folder = scratch / "saved_model"
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder if folder.is_dir() else run.path / "saved_model"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = feed
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = getattr(tf, output)
    with native_noise_hidden():
        return bytes(converter.convert())


def by_litert_all_int8(model: bytes, representative: Representative) -> bytes:
    """Quantize a model with the LiteRT quantizer. The softmax and the scores are quantized to 8 bits, too."""
    from litert_quantizer import qtyping, quantizer

    names = qtyping.TFLOperationName
    engine = quantizer.Quantizer(model)
    engine.add_static_config(".*", names.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for end in (names.INPUT, names.OUTPUT):
        engine.update_quantization_recipe(".*", end, quantize.uint8_config())
    ranges = {
        name: {"min": np.full(1, low), "max": np.full(1, high)} for name, (low, high) in representative.ranges.items()
    }
    return quantize.run_quietly(engine, ranges)


def scored(run: Run, models: Mapping[str, bytes], console: Console) -> dict[str, Evaluation]:
    classifiers = [Classifier(model, labels=run.labels, spec=run.spec) for model in models.values()]
    photos = run.split("test")
    images = ((frame, photo.label) for frame, photo in run.read(photos))
    shown = track(images, "Testing", total=len(photos), console=console)
    return dict(zip(models, evaluate_together(classifiers, shown), strict=True))


def row(name: str, found: Evaluation, truth: Evaluation, size: float, speed: float) -> str:
    ties = np.mean((found.scores == found.scores.max(axis=1, keepdims=True)).sum(axis=1) > 1)
    cells = [
        name,
        f"{100 * found.accuracy:.2f}",
        f"{100 * (truth.accuracy - found.accuracy):+.2f}",
        f"{100 * found.agreement(truth):.2f}",
        f"{found.log_loss:.3f}",
        f"{100 * found.calibration_error():.1f}",
        f"{100 * ties:.1f}",
        f"{size:.3f}",
        f"{speed:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def compare(path: Path, limits: GateLimits, console: Console) -> None:
    run = open_run(path)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        original = float_model.of_run(run, scratch)
        ready = with_fast_operations(original)
        representative = calibrate(ready, run.spec, of_run(run))
        models = {"float32": original, "float16": quantize.to_float16(original)}
        spent = {}
        for output in ("uint8", "float32"):
            start = time.perf_counter()
            models[f"TFLiteConverter, {output} scores"] = by_tensorflow(run, scratch, representative.pixels, output)
            spent["TFLiteConverter"] = time.perf_counter() - start
        models["LiteRT quantizer, uint8 scores"] = by_litert_all_int8(original, representative)
        start = time.perf_counter()
        models["LiteRT quantizer, float scores: the rung int8"] = quantize.to_int8(ready, representative.ranges)
        spent["LiteRT quantizer"] = time.perf_counter() - start
        bundle = scratch / "model-1.edgeloop"
        start = time.perf_counter()
        try:
            converted = convert(path, bundle, console=console, limits=limits)
        except GateError as error:
            print(f"\n{error}")
        else:
            spent["edgeloop convert, testing included"] = time.perf_counter() - start
            last = converted.outcomes[-1].rung
            models[f"edgeloop convert: {last.name}, {last.did}"] = open_bundle(bundle).read(MODEL)
        found = scored(run, models, console)
        times = np.array([latencies_ms(list(models.values())) for _ in range(ROUNDS)])
    ratios = np.median(times[:, :1] / times, axis=0)
    truth = found["float32"]
    heads = "model", "accuracy %", "lost", "agreement %", "log loss", "calibration error %", "ties %", "size", "speed"
    print(f"\n{run.backbone}, {len(truth.truth)} test images; float32 {np.median(times[:, 0]):.1f} ms\n")
    print(f"| {' | '.join(heads)} |")
    print("| --- " * len(heads) + "|")
    for place, (name, model) in enumerate(models.items()):
        print(row(name, found[name], truth, len(model) / len(original), ratios[place]))
    print("\n" + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items()), flush=True)
    if ours := next((name for name in models if name.startswith("edgeloop convert")), None):
        of = f"{run.backbone}, edgeloop convert"
        lost = 0.3 if run.backbone in ("efficientnet-lite0", "mobilenet-v2") else 1.0
        record(f"{of}, accuracy lost", 100 * (truth.accuracy - found[ours].accuracy), "points", at_most=lost)
        record(f"{of}, agreement with float", 100 * found[ours].agreement(truth), "%", at_least=97.0)
        record(f"{of}, size over float32", len(models[ours]) / len(original), at_most=0.3)
        record(f"{of}, speed over float32", ratios[list(models).index(ours)], at_least=2.0)
        record(f"{of}, time", spent["edgeloop convert, testing included"], "s", at_most=60.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--min-agreement", type=float, default=0.0, help="minimum agreement of the last row, percent")
    arguments = parser.parse_args()
    limits = GateLimits(min_agreement=arguments.min_agreement, allowed=frozenset({"slow"}))
    for path in arguments.runs:
        compare(path, limits, Console(stderr=True))


if __name__ == "__main__":
    main()
