"""The ladder: what can be done for a network that plain int8 hurts, the cheapest first.

Each rung starts from what has helped so far. Whether it helps is measured by how far the int8 scores are from those of
the float model, on validation images: the test split judges, it does not choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_agent.bundle.manifest import Precision
from edge_agent.inference.interpreter import Interpreter
from edge_agent.preprocess import Pixels

from ..progress import Advance
from . import bias_correction, cross_layer_equalization, qat
from .calibration import Representative
from .observers import Ranges
from .quantize import to_int8
from .range_clipping import clipped
from .sensitivity import by_damage, layers

SWEEP = 24
"""Images a layer's damage is measured on. The layers' order hardly changes beyond, and each costs a second or two."""

Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows a progress bar: what is done, and in how many steps."""


@dataclass(frozen=True)
class Rung:
    """One model to be judged: its rung's name, what was done for it, the ``.tflite``, and what its weights are."""

    name: str
    did: str
    model: bytes
    precision: Precision = "int8"


@dataclass(frozen=True)
class _State:
    """What int8 is made of: the float model, the ranges of its activations, and the tensors left in float."""

    model: bytes
    ranges: Ranges
    floats: tuple[str, ...] = ()

    def quantized(self) -> bytes:
        return to_int8(self.model, self.ranges, floats=self.floats)


def rungs(
    model: bytes,
    seen: Representative,
    watch: Callable[[], Pixels],
    *,
    observe: Callable[[bytes], Ranges],
    learn: Callable[[Advance], bytes] | None,
    bar: Bar,
    say: Callable[[str], object],
) -> Iterator[Rung]:
    """Models to judge, each made when it is asked for.

    Args:
        model: the float32 ``.tflite``.
        seen: the representative dataset.
        watch: gives images (n, height, width, 3) uint8 to measure on whether a rung helps; not called for the first.
        observe: measures the ranges of a changed float model on the representative dataset.
        learn: fine-tunes the run's network for int8 and gives it as float32 ``.tflite``; None where it cannot.
        bar: shows progress.
        say: tells of a rung that did not help.
    """
    pixels = seen.pixels
    state = _State(model, seen.ranges)
    plain = state.quantized()
    yield Rung("int8", "static int8, per channel", plain)
    watched = watch()
    distance = _Distance(model, watched)
    least = distance(plain)

    def helps(name: str, tried: _State) -> bytes | None:
        nonlocal state, least
        made = tried.quantized()
        found = distance(made)
        if not found < least:
            say(f"{name}: no closer to float (divergence {least:.2g} -> {found:.2g}), left out")
            return None
        state, least = tried, found
        return made

    with bar("Better ranges", len(pixels)) as advance:
        ranges = clipped(state.model, state.ranges, pixels, advance=advance)
    if made := helps("ranges", replace(state, ranges=ranges)):
        yield Rung("ranges", "ranges with the least squared error", made)

    with bar("Cross-layer equalisation", len(pixels)) as advance:
        even = cross_layer_equalization.equalised(state.model, pixels, advance=advance)
    if even is None:
        say("equalise: this network has no channels that can be scaled freely, left out")
    elif made := helps("equalise", _State(even, observe(even))):
        yield Rung("equalise", "channels brought to like ranges", made)

    with bar("Bias correction", len(pixels)) as advance:
        unbiased = bias_correction.corrected(state.model, state.quantized(), pixels, advance=advance)
    if made := helps("bias", replace(state, model=unbiased)):
        yield Rung("bias", "biases corrected for rounded weights", made)

    among = layers(state.model)
    with bar("Which layers suffer", len(among)) as advance:
        near = _Distance(model, watched[:SWEEP])
        worst = [layer for layer, _ in by_damage(state.model, state.ranges, near, among=among, advance=advance)]
    count = 1
    while count <= len(among) // 2:
        chosen = worst[:count]
        mixed = replace(state, floats=tuple(tensor for layer in chosen for tensor in layer.tensors))
        named = ", ".join(layer.name for layer in chosen[:4]) + (f" and {count - 4} more" if count > 4 else "")
        yield Rung("mixed", f"left in float: {named}", mixed.quantized())
        count *= 2

    if learn is None:
        say("qat: this run has no Keras network to fine-tune, left out")
        return
    with bar("Quantization-aware fine-tuning", qat.STEPS) as advance:
        learnt = learn(advance)
    tries = [_State(learnt, ranges := observe(learnt)), _State(learnt, clipped(learnt, ranges, pixels))]
    if made := helps("qat", min(tries, key=lambda tried: distance(tried.quantized()))):
        yield Rung("qat", f"fine-tuned with rounded values for {qat.STEPS} steps", made)


class _Distance:
    """How far a model's scores are from the float model's on some images: mean Kullback-Leibler divergence, nats."""

    def __init__(self, model: bytes, pixels: Pixels) -> None:
        self._pixels = pixels
        self._wanted = _scores(model, pixels)

    def __call__(self, model: bytes) -> float:
        least = 1e-7
        wanted, given = np.clip(self._wanted, least, 1), np.clip(_scores(model, self._pixels), least, 1)
        return float((wanted * np.log(wanted / given)).sum(axis=1).mean())


def _scores(model: bytes, pixels: Pixels) -> npt.NDArray[np.float32]:
    """(images, classes) of images that are prepared already; uint8 and float32 inputs both hold levels."""
    found = []
    with Interpreter(model) as loaded:
        for image in pixels:
            loaded.input()[0] = image
            loaded.invoke()
            found.append(loaded.output()[0].astype(np.float32))
    return np.stack(found)
