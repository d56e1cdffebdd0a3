"""A run to a bundle, read top to bottom: float, ranges, int8, the gate, the bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import track

from edge_agent.bundle.signature import sign
from edge_agent.errors import ConfigError, ModelError
from edge_agent.inference.classifier import Classifier
from edge_agent.inference.evaluation import Evaluation, evaluate_together
from edge_agent.preprocess import Pixels, preprocess

from .gate import GateLimits, Refusal, Verdict, gate_error, refused, timed_ms
from .packaging.pack import Packed, pack, parse_name
from .progress import Advance, steps
from .quantization import qat
from .quantization.calibration import ALIKE, MOST, Frame, Representative, calibrate, choose, of_folder, of_run
from .quantization.ladder import Rung, rungs
from .quantization.observers import observed_ranges
from .quantization.quantize import to_float16
from .run_reader import Run, RunImage, open_run
from .tflite import float_model
from .tflite.xnnpack import off_the_fast_path, with_fast_operations

Method: TypeAlias = Literal["auto", "int8", "float16", "float32"]
WATCHED = 64
"""Validation images on which a rung has to help; they must be enough for a mean divergence, no more."""
TAUGHT = 2000
"""Training images that quantization-aware fine-tuning holds in memory at most."""


@dataclass(frozen=True)
class GateOutcome:
    """One rung, what the gate measured, and what it refuses."""

    rung: Rung
    verdict: Verdict
    refusals: tuple[Refusal, ...]
    passed: bool


@dataclass(frozen=True)
class Converted:
    """The bundle written, every rung climbed (the last one is in the bundle), and the float model's size."""

    path: Path
    digest: str
    judged: tuple[GateOutcome, ...]
    float_bytes: int

    @property
    def verdict(self) -> Verdict:
        """Of the model in the bundle."""
        return self.judged[-1].verdict

    @property
    def model_bytes(self) -> int:
        """Size of the model in the bundle."""
        return len(self.judged[-1].rung.model)


def convert(
    run_path: Path,
    out: Path,
    *,
    console: Console,
    method: Method = "auto",
    limits: GateLimits | None = None,
    data: Path | None = None,
    calibration: Path | None = None,
    key: Path | None = None,
) -> Converted:
    """Quantize a run, measure float and quantized model on its test split, pack the bundle if little enough was lost.

    Args:
        run_path: a run directory.
        out: the bundle to write, called NAME-VERSION.edgeloop. Replaced when it exists.
        console: where progress goes.
        method: ``int8``, ``float16``, ``float32``, or ``auto``: int8 by every means of `ladder` until the gate lets it
            through.
        limits: what quantization may cost.
        data: where the run's images lie now, if they moved.
        calibration: a folder of images to measure ranges on, in place of the run's training images.
        key: SSH key to sign the bundle with.

    Raises:
        DataError: the run or its images are not what they were.
        ModelError: the network cannot be converted.
        GateError: too much was lost. In each case nothing is written.
    """
    parse_name(out)
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such directory; make it first")
    if key is not None:
        sign(b"", key)  # a key that does not sign is better known now than after the work
    limits = limits or GateLimits()
    run = open_run(run_path, data=data)
    frames = of_folder(calibration, lambda text: _say(console, text)) if calibration else of_run(run)
    with tempfile.TemporaryDirectory(prefix="edgeloop-convert-") as scratch:
        with steps(console, "Converting to float32", 1) as advance:
            original = float_model.of_run(run, Path(scratch))
            advance()
        with Classifier(original, labels=run.labels, spec=run.spec):
            pass  # what breaks the contract is refused before anything is measured on it
        seen = None
        if method in {"float32", "float16"}:
            made = original if method == "float32" else to_float16(original)
            climbed: Iterator[Rung] = iter([Rung(method, f"weights in {method}", made, method)])
        else:
            prepared = with_fast_operations(original)
            with closing(frames):
                seen = _representative(run, prepared, frames, "folder" if calibration else "train", console)
            climbed = _rungs(run, prepared, seen, Path(scratch), console)
        judged = _climb(run, original, climbed, limits, console, all_of_them=method == "auto")
    last = judged[-1]
    overridden = tuple(sorted({one.check for one in last.refusals}))
    packed = Packed(
        model=last.rung.model,
        verdict=last.verdict,
        rungs=[(one.rung, one.verdict, one.passed) for one in judged],
        calibration=seen.record if seen else None,
        overridden=overridden,
    )
    digest = pack(out, run, packed, key=key)
    return Converted(out, digest, judged, len(original))


def _representative(run: Run, model: bytes, frames: Iterable[Frame], source: str, console: Console) -> Representative:
    with steps(console, "Measuring ranges", MOST) as advance:
        seen = calibrate(model, run.spec, frames, source=source, advance=advance)
    if seen.spread < ALIKE:
        console.print(
            f"[yellow]the {seen.record.images} calibration images are nearly the same: they differ by "
            f"{seen.spread:.1f} levels of 255. Other scenes may leave the ranges they set; add different ones[/]",
            highlight=False,
            soft_wrap=True,
        )
    return seen


def _rungs(run: Run, model: bytes, seen: Representative, scratch: Path, console: Console) -> Iterator[Rung]:
    def learn(advance: Advance) -> bytes:
        network = float_model.load_model(run.path / "model.keras", run.spec, len(run.labels))
        qat.fine_tune(network, _prepared(run, run.split("train"), TAUGHT), seen.pixels, advance=advance)
        folder = scratch / "learnt"
        float_model.export(network, folder, run.spec)
        return with_fast_operations(float_model.to_float(folder))

    return rungs(
        model,
        seen,
        lambda: _prepared(run, run.split("val") or run.split("train"), WATCHED),
        observe=lambda changed: observed_ranges(changed, seen.pixels),
        learn=learn if (run.path / "model.keras").is_file() else None,
        bar=lambda what, total: steps(console, what, total),
        say=lambda text: _say(console, text),
    )


def _say(console: Console, text: str) -> None:
    """One line as it is: class and file names in it may look like markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _prepared(run: Run, photos: list[RunImage], count: int) -> Pixels:
    """Up to that many images as the model sees them, balanced over the classes: (n, height, width, 3) uint8."""
    chosen = choose(photos, count, seed=1)
    pixels = np.empty((len(chosen), *run.spec.shape), np.uint8)
    for place, (frame, _) in enumerate(run.read(chosen)):
        preprocess(frame, run.spec, pixels[place])
    return pixels


def _climb(
    run: Run, original: bytes, climbed: Iterator[Rung], limits: GateLimits, console: Console, *, all_of_them: bool
) -> tuple[GateOutcome, ...]:
    """Judge rung after rung until one passes.

    Raises:
        GateError: none does.
    """
    judged: list[GateOutcome] = []
    truth: Evaluation | None = None
    for rung in climbed:
        found = _score(run, {"float32": original, rung.name: rung.model}, truth, console)
        truth, scored = found["float32"], found[rung.name]
        float_ms, model_ms = timed_ms(original, rung.model)
        slow = off_the_fast_path(rung.model) if rung.precision == "int8" else None
        verdict = Verdict(truth, scored, float_ms, model_ms, slow)
        refusals = tuple(verdict.refusals(limits))
        against = refused(refusals, limits)
        judged.append(GateOutcome(rung, verdict, refusals, not against))
        if not against:
            return tuple(judged)
        _say(console, f"{rung.name}: {'; '.join(one.reason for one in against)}")
        # No rung makes operations faster.
        if not all_of_them or all(one.check == "slow" for one in against):
            break
    best = min(judged, key=lambda one: (len(refused(one.refusals, limits)), -one.verdict.agreement))
    what = f"{best.rung.name}, the closest to float of {len(judged)} ways tried" if len(judged) > 1 else best.rung.name
    raise gate_error(refused(best.refusals, limits), what)


def _score(
    run: Run, models: Mapping[str, bytes], float32: Evaluation | None, console: Console
) -> dict[str, Evaluation]:
    """Score models on the test split, image by image, as the device will; the float model only the first time."""
    photos = run.split("test")
    waiting = {name: model for name, model in models.items() if name != "float32" or float32 is None}

    def images() -> Iterator[tuple[Pixels, str]]:
        for frame, photo in track(
            run.read(photos), f"Testing {' and '.join(waiting)}", total=len(photos), console=console
        ):
            yield frame, photo.label

    with ExitStack() as stack:
        classifiers = {
            name: stack.enter_context(Classifier(model, labels=run.labels, spec=run.spec))
            for name, model in waiting.items()
        }
        for name, classifier in classifiers.items():
            if not name.startswith("float") and classifier.tensors.input.dtype == "float32":
                raise ModelError("the quantizer left the input in float32; this network cannot be packed as int8")
        found = dict(zip(classifiers, evaluate_together(list(classifiers.values()), images()), strict=True))
    if float32 is not None:
        found["float32"] = float32
    return found
