"""Converts a run to a bundle.

Makes the float32 model, measures the activation ranges, makes the int8 model, checks it with the gate and packs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from rich.console import Console

from edge_agent.bundle.signature import sign
from edge_agent.errors import ConfigError, ModelError
from edge_agent.inference.classifier import Classifier
from edge_agent.inference.evaluation import Evaluation, evaluate_together
from edge_agent.preprocessing import Pixels, preprocess
from edge_agent.progress_lines import Progress

from .gate import GateLimits, Refusal, Verdict, gate_error, refused, timed_ms
from .packaging.pack import Packed, pack, parse_name
from .progress import Advance, CallbackConsole, steps, track
from .quantization import qat
from .quantization.calibration import (
    MAX_IMAGES,
    MIN_SPREAD,
    Frame,
    Representative,
    calibrate,
    choose,
    of_folder,
    of_run,
)
from .quantization.ladder import Rung, rungs
from .quantization.observers import observed_ranges
from .quantization.quantize import to_float16
from .run_reader import Run, RunImage, open_run
from .tflite import float_model
from .tflite.xnnpack import off_the_fast_path, with_fast_operations

Method: TypeAlias = Literal["auto", "int8", "float16", "float32"]
VALIDATION_IMAGES = 64
"""Number of validation images on which the divergence of a rung is measured; it is enough for a stable mean."""
FINE_TUNING_IMAGES = 2000
"""Maximum number of training images that quantization-aware fine-tuning keeps in memory."""


@dataclass(frozen=True)
class GateOutcome:
    """Result of the gate for one rung.

    Attributes:
        rung: the rung.
        verdict: what the gate measured for its model.
        refusals: all checks that failed, including allowed ones.
        passed: True if there are no failed checks, or all of them are allowed to fail.
    """

    rung: Rung
    verdict: Verdict
    refusals: tuple[Refusal, ...]
    passed: bool


@dataclass(frozen=True)
class Converted:
    """The written bundle.

    Attributes:
        path: the bundle file.
        digest: digest of the bundle.
        outcomes: every rung that was tried; the last one is in the bundle.
        float_bytes: size of the float model, in bytes.
    """

    path: Path
    digest: str
    outcomes: tuple[GateOutcome, ...]
    float_bytes: int

    @property
    def verdict(self) -> Verdict:
        """What the gate measured for the model in the bundle."""
        return self.outcomes[-1].verdict

    @property
    def model_bytes(self) -> int:
        """Size of the model in the bundle, in bytes."""
        return len(self.outcomes[-1].rung.model)


def convert(
    run: str | Path,
    out: str | Path,
    *,
    console: Console | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_message: Callable[[str], object] | None = None,
    method: Method = "auto",
    limits: GateLimits | None = None,
    data: Path | None = None,
    calibration: Path | None = None,
    key: Path | None = None,
) -> Converted:
    """Quantize a run's model, evaluate the float and the quantized model, and pack a bundle if the gate accepts it.

    Both models are evaluated on the test split of the run. If an error is raised, nothing is written.

    Args:
        run: a run directory.
        out: path of the bundle to write; its file name must have the form NAME-VERSION.edgeloop. An existing file is
            replaced.
        console: Rich console that shows progress and messages. If it is given, the two functions are not called.
        on_progress: called with the progress of each stage.
        on_message: called with each message, such as a warning about the images, as one line of plain text.
        method: ``int8``, ``float16``, ``float32`` or ``auto``. ``auto`` tries the rungs of `quantization.ladder` in
            turn until one passes the gate.
        limits: limits of the gate, such as the largest accepted loss of accuracy; the defaults if None.
        data: folder of the run's images, if they were moved after training.
        calibration: folder of images on which the ranges are measured; by default the run's training images.
        key: SSH key with which the bundle is signed; it is not signed if None.

    Raises:
        ConfigError: the name of the bundle is invalid, or its folder does not exist.
        DataError: the run or its images have changed or are damaged.
        ModelError: the network cannot be converted.
        GateError: the model failed a check of the gate, for example because it lost too much accuracy.
    """
    out, console = Path(out), console or CallbackConsole(on_progress, on_message)
    parse_name(out)
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such directory; create it first")
    if key is not None:
        sign(b"", key)  # find an unusable key before the long work, not after
    limits = limits or GateLimits()
    trained = open_run(Path(run), data=data)
    frames = of_folder(calibration, lambda text: _say(console, text)) if calibration else of_run(trained)
    with tempfile.TemporaryDirectory(prefix="edgeloop-convert-") as scratch:
        with steps(console, "Converting to float32", 1) as advance:
            original = float_model.of_run(trained, Path(scratch))
            advance()
        with Classifier(original, labels=trained.labels, spec=trained.spec):
            pass  # refuse a model that breaks the contract before measuring anything
        representative = None
        if method in {"float32", "float16"}:
            model = original if method == "float32" else to_float16(original)
            candidates: Iterator[Rung] = iter([Rung(method, f"weights in {method}", model, method)])
        else:
            prepared = with_fast_operations(original)
            with closing(frames):
                representative = _representative(
                    trained, prepared, frames, "folder" if calibration else "train", console
                )
            candidates = _rungs(trained, prepared, representative, Path(scratch), console)
        outcomes = _climb(trained, original, candidates, limits, console, all_of_them=method == "auto")
    last = outcomes[-1]
    overridden = tuple(sorted({one.check for one in last.refusals}))
    packed = Packed(
        model=last.rung.model,
        verdict=last.verdict,
        rungs=[(one.rung, one.verdict, one.passed) for one in outcomes],
        calibration=representative.record if representative else None,
        overridden=overridden,
    )
    digest = pack(out, trained, packed, key=key)
    return Converted(out, digest, outcomes, len(original))


def _representative(run: Run, model: bytes, frames: Iterable[Frame], source: str, console: Console) -> Representative:
    with steps(console, "Measuring ranges", MAX_IMAGES) as advance:
        representative = calibrate(model, run.spec, frames, source=source, advance=advance)
    if representative.spread < MIN_SPREAD:
        console.print(
            f"[yellow]the {representative.record.images} calibration images are nearly the same: they differ by "
            f"{representative.spread:.1f} levels of 255. Other scenes may exceed the measured ranges; add more varied "
            "images[/]",
            highlight=False,
            soft_wrap=True,
        )
    return representative


def _rungs(run: Run, model: bytes, representative: Representative, scratch: Path, console: Console) -> Iterator[Rung]:
    def fine_tune(advance: Advance) -> bytes:
        network = float_model.load_model(run.path / "model.keras", run.spec, len(run.labels))
        images = _prepared(run, run.split("train"), FINE_TUNING_IMAGES)
        qat.fine_tune(network, images, representative.pixels, advance=advance)
        folder = scratch / "fine_tuned"
        float_model.export(network, folder, run.spec)
        return with_fast_operations(float_model.to_float(folder))

    return rungs(
        model,
        representative,
        lambda: _prepared(run, run.split("val") or run.split("train"), VALIDATION_IMAGES),
        observe=lambda changed: observed_ranges(changed, representative.pixels),
        fine_tune=fine_tune if (run.path / "model.keras").is_file() else None,
        bar=lambda what, total: steps(console, what, total),
        say=lambda text: _say(console, text),
    )


def _say(console: Console, text: str) -> None:
    """Print one line without interpreting markup, because the names of classes and files may look like markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _prepared(run: Run, photos: list[RunImage], count: int) -> Pixels:
    """Preprocess up to ``count`` images, balanced over the classes. Return (n, height, width, 3) uint8."""
    chosen = choose(photos, count, seed=1)
    pixels = np.empty((len(chosen), *run.spec.shape), np.uint8)
    for place, (frame, _) in enumerate(run.read(chosen)):
        preprocess(frame, run.spec, pixels[place])
    return pixels


def _climb(
    run: Run, original: bytes, candidates: Iterator[Rung], limits: GateLimits, console: Console, *, all_of_them: bool
) -> tuple[GateOutcome, ...]:
    """Evaluate one rung after another until one passes the gate.

    Raises:
        GateError: no rung passed.
    """
    outcomes: list[GateOutcome] = []
    float32: Evaluation | None = None
    for rung in candidates:
        evaluations = _score(run, {"float32": original, rung.name: rung.model}, float32, console)
        float32, quantized = evaluations["float32"], evaluations[rung.name]
        float_ms, model_ms = timed_ms(original, rung.model)
        slow = off_the_fast_path(rung.model) if rung.precision == "int8" else None
        verdict = Verdict(float32, quantized, float_ms, model_ms, slow)
        refusals = tuple(verdict.refusals(limits))
        blocking = refused(refusals, limits)
        outcomes.append(GateOutcome(rung, verdict, refusals, not blocking))
        if not blocking:
            return tuple(outcomes)
        _say(console, f"{rung.name}: {'; '.join(one.reason for one in blocking)}")
        # No rung makes operations faster.
        if not all_of_them or all(one.check == "slow" for one in blocking):
            break
    best = min(outcomes, key=lambda one: (len(refused(one.refusals, limits)), -one.verdict.agreement))
    tried = len(outcomes)
    what = f"{best.rung.name}, the closest to float of {tried} rungs tried" if tried > 1 else best.rung.name
    raise gate_error(refused(best.refusals, limits), what)


def _score(
    run: Run, models: Mapping[str, bytes], float32: Evaluation | None, console: Console
) -> dict[str, Evaluation]:
    """Evaluate models on the test split with the classifier of the devices.

    The float model is evaluated only the first time: ``float32`` is its evaluation, if it exists.
    """
    photos = run.split("test")
    remaining = {name: model for name, model in models.items() if name != "float32" or float32 is None}

    def images() -> Iterator[tuple[Pixels, str]]:
        for frame, photo in track(
            run.read(photos), f"Testing {' and '.join(remaining)}", total=len(photos), console=console
        ):
            yield frame, photo.label

    with ExitStack() as stack:
        classifiers = {
            name: stack.enter_context(Classifier(model, labels=run.labels, spec=run.spec))
            for name, model in remaining.items()
        }
        for name, classifier in classifiers.items():
            if not name.startswith("float") and classifier.tensors.input.dtype == "float32":
                raise ModelError("the quantizer left the input in float32; this network cannot be packed as int8")
        evaluations = dict(zip(classifiers, evaluate_together(list(classifiers.values()), images()), strict=True))
    if float32 is not None:
        evaluations["float32"] = float32
    return evaluations
