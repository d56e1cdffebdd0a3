"""Writes the model card `card.md`, which tells users what they should know about the model."""

from __future__ import annotations

from edge_agent.bundle.manifest import Manifest

from ..run_reader import Run

_WORST = 5


def card(manifest: Manifest, run: Run, confused: list[tuple[str, str, int]]) -> str:
    """Return the model card as Markdown.

    Args:
        manifest: manifest of the bundle.
        run: run from which the model was converted.
        confused: the most frequent misclassifications on the test split. Each is a tuple of the true class, the
            predicted class and the number of images.
    """
    metrics, provenance = manifest.metrics, manifest.provenance
    height, width = manifest.preprocess.size
    before, after = metrics.float32.per_class, metrics.model.per_class
    weakest = min(after, key=lambda label: after[label])
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"Classifies camera frames into {len(run.labels)} classes: {', '.join(run.labels)}.",
        "",
        f"- Network: {provenance.backbone}, {manifest.precision}, input {height}x{width} ({manifest.preprocess.fit})",
        f"- Trained on {len(run.split('train'))} images (run {provenance.run})",
        f"- Tested on {metrics.images} images that were not used for training",
        f"- Accuracy {_percent(metrics.model.accuracy)} (float model: {_percent(metrics.float32.accuracy)})",
        f"- Predicts the same class as the float model on {_percent(metrics.agreement)} of the test images",
        f"- Calibration error {_percent(metrics.model.calibration_error)}",
        *([f"- Weakest class: {weakest}, recall {_percent(after[weakest])}"] if after[weakest] < 1 else []),
        "- Always predicts one of these classes; below the score thresholds the agent reports `unknown`",
        *([f"- Packed despite failed checks: {', '.join(provenance.overridden)}"] if provenance.overridden else []),
        "",
        "## Classes",
        "",
        "| class | recall, float | recall, this model |",
        "| --- | --- | --- |",
        *(f"| {_cell(label)} | {_percent(before.get(label))} | {_percent(after.get(label))} |" for label in run.labels),
        "",
    ]
    if confused:
        lines += ["## Most frequent errors", "", "| class | misclassified as | images |", "| --- | --- | --- |"]
        lines += [f"| {_cell(label)} | {_cell(predicted)} | {count} |" for label, predicted, count in confused[:_WORST]]
        lines.append("")
    lines += ["## Conversion", "", *_conversion(manifest), ""]
    return "\n".join(lines)


def _conversion(manifest: Manifest) -> list[str]:
    provenance = manifest.provenance
    calibration = provenance.calibration
    lines = [f"Converted by {provenance.converter}."]
    if calibration:
        kind = "training images" if calibration.source == "train" else "images from a separate folder"
        lines.append(f"Integer ranges measured on {calibration.images} {kind}.")
    lines += [
        "",
        "| rung | quantization step | size | accuracy | agreement with float | |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {rung.name} | {_cell(rung.did)} | {rung.bytes / 1e6:.2f} MB | {_percent(rung.accuracy)} | "
            f"{_percent(rung.agreement)} | {'packed' if rung.passed else 'refused'} |"
            for rung in provenance.rungs
        ),
    ]
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "/")


def _percent(share: float | None) -> str:
    return "no test images" if share is None else f"{100 * share:.1f} %"
