"""The ladder: quantization steps for networks that lose too much accuracy with plain int8, cheapest first.

Each step is a rung and builds on the previous rungs that helped. A rung helps if it reduces the divergence of the int8
scores from the scores of the float model. The divergence is measured on validation images, because the test split is
used only for the verdict and never for choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_agent.bundle.manifest import Precision
from edge_agent.inference.interpreter import Interpreter
from edge_agent.preprocessing import Pixels

from ..progress import Advance
from . import bias_correction, cross_layer_equalization, qat
from .calibration import Representative
from .observers import Ranges
from .quantize import to_int8
from .range_clipping import clipped
from .sensitivity import by_damage, layers

SWEEP = 24
"""Number of images on which the sensitivity of each layer is measured.

More images hardly change the order of the layers, and each image takes a second or two.
"""

Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""Function that shows a progress bar. It takes a description and the number of steps."""


@dataclass(frozen=True)
class Rung:
    """One candidate model.

    Attributes:
        name: name of the rung.
        did: description of the quantization step.
        model: content of the ``.tflite`` file.
        precision: precision of the weights.
    """

    name: str
    did: str
    model: bytes
    precision: Precision = "int8"


@dataclass(frozen=True)
class _State:
    """The inputs of a quantization: float model, ranges of its activations, and tensors that stay in float."""

    model: bytes
    ranges: Ranges
    floats: tuple[str, ...] = ()

    def quantized(self) -> bytes:
        return to_int8(self.model, self.ranges, floats=self.floats)


def rungs(
    model: bytes,
    representative: Representative,
    validation: Callable[[], Pixels],
    *,
    observe: Callable[[bytes], Ranges],
    fine_tune: Callable[[Advance], bytes] | None,
    bar: Bar,
    say: Callable[[str], object],
) -> Iterator[Rung]:
    """Yield the candidate models of the ladder. Each model is built only when the caller asks for it.

    Args:
        model: the float32 ``.tflite``.
        representative: the representative dataset.
        validation: returns the images on which the divergence is measured, (n, height, width, 3) uint8. It is not
            called before the second rung is requested.
        observe: takes a changed float model and returns its ranges on the representative dataset.
        fine_tune: fine-tunes the run's network for int8 and returns it as a float32 ``.tflite``; None if the run has no
            Keras network.
        bar: shows the progress of a step.
        say: prints a message about a rung that did not help.
    """
    pixels = representative.pixels
    state = _State(model, representative.ranges)
    plain = state.quantized()
    yield Rung("int8", "static int8, per channel", plain)
    images = validation()
    distance = _Distance(model, images)
    least = distance(plain)

    def helps(name: str, tried: _State) -> bytes | None:
        nonlocal state, least
        made = tried.quantized()
        found = distance(made)
        if not found < least:
            say(f"{name}: skipped, not closer to float (divergence {least:.2g} -> {found:.2g})")
            return None
        state, least = tried, found
        return made

    with bar("Range clipping", len(pixels)) as advance:
        ranges = clipped(state.model, state.ranges, pixels, advance=advance)
    if made := helps("ranges", replace(state, ranges=ranges)):
        yield Rung("ranges", "ranges with the least squared error", made)

    with bar("Cross-layer equalization", len(pixels)) as advance:
        even = cross_layer_equalization.equalized(state.model, pixels, advance=advance)
    if even is None:
        say("equalise: skipped, this network has no channels that can be scaled freely")
    elif made := helps("equalise", _State(even, observe(even))):
        yield Rung("equalise", "cross-layer equalization of channel ranges", made)

    with bar("Bias correction", len(pixels)) as advance:
        unbiased = bias_correction.corrected(state.model, state.quantized(), pixels, advance=advance)
    if made := helps("bias", replace(state, model=unbiased)):
        yield Rung("bias", "biases corrected for rounded weights", made)

    among = layers(state.model)
    with bar("Layer sensitivity", len(among)) as advance:
        sweep = _Distance(model, images[:SWEEP])
        worst = [layer for layer, _ in by_damage(state.model, state.ranges, sweep, among=among, advance=advance)]
    count = 1
    while count <= len(among) // 2:
        chosen = worst[:count]
        mixed = replace(state, floats=tuple(tensor for layer in chosen for tensor in layer.tensors))
        named = ", ".join(layer.name for layer in chosen[:4]) + (f" and {count - 4} more" if count > 4 else "")
        yield Rung("mixed", f"left in float: {named}", mixed.quantized())
        count *= 2

    if fine_tune is None:
        say("qat: skipped, this run has no Keras network to fine-tune")
        return
    with bar("Quantization-aware fine-tuning", qat.STEPS) as advance:
        tuned = fine_tune(advance)
    tries = [_State(tuned, ranges := observe(tuned)), _State(tuned, clipped(tuned, ranges, pixels))]
    if made := helps("qat", min(tries, key=lambda tried: distance(tried.quantized()))):
        yield Rung("qat", f"quantization-aware fine-tuning for {qat.STEPS} steps", made)


class _Distance:
    """Computes the divergence of a model's scores from the scores of the float model on given images.

    The result is the mean Kullback-Leibler divergence, in nats.
    """

    def __init__(self, model: bytes, pixels: Pixels) -> None:
        self._pixels = pixels
        self._expected = _scores(model, pixels)

    def __call__(self, model: bytes) -> float:
        least = 1e-7
        expected, actual = np.clip(self._expected, least, 1), np.clip(_scores(model, self._pixels), least, 1)
        return float((expected * np.log(expected / actual)).sum(axis=1).mean())


def _scores(model: bytes, pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return the scores of preprocessed images, (images, classes) float32.

    The input of the model may be uint8 or float32; both hold pixel levels.
    """
    found = []
    with Interpreter(model) as loaded:
        for image in pixels:
            loaded.input()[0] = image
            loaded.invoke()
            found.append(loaded.output()[0].astype(np.float32))
    return np.stack(found)
