"""`card.md`: what a person should know before using the model."""

from __future__ import annotations

from edge_agent.bundle.manifest import Manifest

from ..run_reader import Run

_WORST = 5


def card(manifest: Manifest, run: Run, confused: list[tuple[str, str, int]]) -> str:
    """The card as Markdown.

    Args:
        manifest: of the bundle.
        run: it was made of.
        confused: class, what it was taken for, how often: the mistakes of the model on the test split.
    """
    metrics, provenance = manifest.metrics, manifest.provenance
    height, width = manifest.preprocess.size
    before, after = metrics.float32.per_class, metrics.model.per_class
    weakest = min(after, key=lambda label: after[label])
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        f"Tells {len(run.labels)} classes apart in one camera frame: {', '.join(run.labels)}.",
        "",
        f"- Network: {provenance.backbone}, {manifest.precision}, input {height}x{width} ({manifest.preprocess.fit})",
        f"- Trained on {len(run.split('train'))} images (run {provenance.run})",
        f"- Tested on {metrics.images} images it never saw",
        f"- Recognises {_percent(metrics.model.accuracy)} of those, {_percent(metrics.float32.accuracy)} in float",
        f"- Names the same class as in float on {_percent(metrics.agreement)} of them",
        f"- Scores are off by {_percent(metrics.model.calibration_error)} on average",
        *([f"- Weakest class: {weakest}, {_percent(after[weakest])}"] if after[weakest] < 1 else []),
        "- Names one of these classes whatever it sees; below the thresholds the agent says `unknown`",
        *([f"- Packed although refused for: {', '.join(provenance.overridden)}"] if provenance.overridden else []),
        "",
        "## Classes",
        "",
        "| class | recognised, float | here |",
        "| --- | --- | --- |",
        *(f"| {_cell(label)} | {_percent(before.get(label))} | {_percent(after.get(label))} |" for label in run.labels),
        "",
    ]
    if confused:
        lines += ["## Where it fails", "", "| class | taken for | images |", "| --- | --- | --- |"]
        lines += [f"| {_cell(label)} | {_cell(taken)} | {count} |" for label, taken, count in confused[:_WORST]]
        lines.append("")
    lines += ["## How it was made", "", *_made(manifest), ""]
    return "\n".join(lines)


def _made(manifest: Manifest) -> list[str]:
    provenance = manifest.provenance
    seen = provenance.calibration
    lines = [f"Converted by {provenance.converter}."]
    if seen:
        kind = "training images" if seen.source == "train" else "images of one's own"
        lines.append(f"Integer ranges measured on {seen.images} {kind}.")
    lines += [
        "",
        "| rung | what was done | size | accuracy | same answer as float | |",
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
