"""`edgeloop inspect`: show the contents of a bundle, as text or as JSON."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from ..bundle import Bundle, open_bundle
from ..bundle.archive import CARD
from ..bundle.manifest import Calibration, TensorEntry
from ..bundle.signature import Signed, verify_bundle


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--allowed-signers",
    type=click.Path(path_type=Path, dir_okay=False),
    help="OpenSSH file of allowed signers; a bundle that none of them signed is refused.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the expected scores of the canary images.")
def inspect_command(bundle: Path, allowed_signers: Path | None, *, as_json: bool) -> None:
    """Verify BUNDLE, and its signature if it has one, and show its contents."""
    opened = open_bundle(bundle)
    signed = verify_bundle(opened, allowed_signers)
    if as_json:
        value = {
            "digest": opened.digest,
            "signed": signed,
            "labels": opened.labels,
            "manifest": opened.manifest,
            "canary": opened.canary(),
            "card": opened.read(CARD).decode(errors="replace"),
        }
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    else:
        click.echo("\n".join(_lines(opened, signed)))


def _lines(bundle: Bundle, signed: Signed | None) -> list[str]:
    manifest = bundle.manifest
    metrics, provenance, preprocess = manifest.metrics, manifest.provenance, manifest.preprocess
    calibration = provenance.calibration
    height, width = preprocess.size
    labels_width = max(len("all"), *(len(label) for label in bundle.labels))
    rows: list[tuple[str, float | None, float | None]] = [("all", metrics.float32.accuracy, metrics.model.accuracy)]
    rows += [
        (label, metrics.float32.per_class.get(label), metrics.model.per_class.get(label)) for label in bundle.labels
    ]
    facts = [
        ("digest", bundle.digest),
        ("signed", _signed(signed)),
        ("created", manifest.created),
        ("labels", f"{len(bundle.labels)}: {', '.join(bundle.labels)}"),
        ("input", f"{height}x{width} {preprocess.channels}, {preprocess.fit}; {_tensor(manifest.tensors.input)}"),
        ("output", f"{manifest.outputs}; {_tensor(manifest.tensors.output)}"),
        ("thresholds", f"enter {manifest.thresholds.enter}, leave {manifest.thresholds.leave}"),
        ("backbone", provenance.backbone),
        ("run", f"{provenance.run}, data {provenance.data_fingerprint[:12]}, edgeloop {provenance.edgeloop}"),
        ("precision", manifest.precision),
        ("converter", provenance.converter),
        *([("calibrated", _calibration(calibration))] if calibration else []),
        *(
            [("overridden", f"packed although these checks failed: {', '.join(provenance.overridden)}")]
            if provenance.overridden
            else []
        ),
        ("canary", f"{len(bundle.canary())} images"),
        ("needs", f"edgeloop {manifest.min_agent} or newer"),
        (
            "agreement",
            f"{100 * metrics.agreement:.1f} % of {metrics.images} test images get the same label as in float",
        ),
    ]
    return [
        f"{manifest.name} {manifest.version}",
        *(f"  {name:<11} {value}" for name, value in facts),
        f"  {'recall':<11} {'':<{labels_width}}   float  bundle",
        *(
            f"  {'':<11} {label:<{labels_width}} {_percent(float_share)} {_percent(int8_share)}"
            for label, float_share, int8_share in rows
        ),
        f"  {'rungs':<11} {'':<{labels_width}}    size accuracy  agrees",
        *(
            f"  {'':<11} {rung.name:<{labels_width}} {rung.bytes / 1e6:7.2f} {_percent(rung.accuracy)} "
            f"{_percent(rung.agreement)}  {'packed' if rung.passed else 'refused'}: {rung.did}"
            for rung in provenance.rungs
        ),
        "  files",
        *(
            f"  {entry.size:>11,}  {entry.sha256[:12]}  {name}"
            for name, entry in manifest.files.items()
            if not name.endswith(".jpg")
        ),
    ]


def _signed(signed: Signed | None) -> str:
    if signed is None:
        return "no"
    signer = f"by {signed.signer}, " if signed.signer else "signer not checked (use --allowed-signers), "
    return f"{signer}{signed.kind} key {signed.key}"


def _calibration(calibration: Calibration) -> str:
    source = f"of the {calibration.source} split, balanced" if calibration.per_class else "of your own folder"
    return (
        f"on {calibration.images} images {source}, seed {calibration.seed}; the first half of them gave ranges "
        f"{100 * calibration.growth:.1f} % narrower"
    )


def _tensor(tensor: TensorEntry) -> str:
    scale = f", scale {tensor.scale:g}, zero point {tensor.zero_point}" if tensor.scale else ""
    return f"{tensor.dtype} {list(tensor.shape)}{scale}"


def _percent(share: float | None) -> str:
    return "      -" if share is None else f"{100 * share:5.1f} %"
