"""Who made a bundle: OpenSSH signatures over `manifest.json`, made and checked by `ssh-keygen -Y`.

The manifest holds the hash of every other file, so a signature over it covers the bundle. Keys and
`allowed_signers` are those of OpenSSH (ssh-keygen(1), "ALLOWED SIGNERS"): no key format, no
cryptography and no key store of our own.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, SignatureError
from . import Bundle

NAMESPACE = "edgeloop-bundle"
"""What the signature is for: one over a git commit or a mail with the same key does not pass for one of ours."""
_TIMEOUT_S = 30
_GOOD = re.compile(r'Good "[^"]*" signature(?: for .*?)? with (?P<kind>\S+) key (?P<key>SHA256:\S+)')


@dataclass(frozen=True)
class Signed:
    """A signature that fits its manifest.

    Attributes:
        kind: of the key, such as ED25519.
        key: its fingerprint, SHA256:…
        signer: the name `allowed_signers` has for it; None where nobody was asked for.
    """

    kind: str
    key: str
    signer: str | None


def sign(manifest: bytes, key: Path) -> bytes:
    """Sign a manifest with a private key, or with a public one whose private half ssh-agent holds.

    A passphrase is asked for on the terminal.

    Raises:
        ConfigError: no such key, or ssh-keygen does not sign with it.
    """
    if not key.is_file():
        raise ConfigError(f"{key}: no such key; make one with: ssh-keygen -t ed25519 -f {key}")
    # No time limit: somebody may be typing a passphrase.
    done = _ssh_keygen(["-Y", "sign", "-f", str(key), "-n", NAMESPACE], manifest, timeout_s=None)
    if done.returncode != 0:
        raise ConfigError(f"{key}: ssh-keygen does not sign with it: {_reason(done)}")
    return done.stdout


def verify(manifest: bytes, signature: bytes, allowed_signers: Path | None) -> Signed:
    """Check that a signature fits the manifest and, where ``allowed_signers`` is given, that one of them made it.

    Raises:
        SignatureError: it does not, or cannot be checked here.
        ConfigError: there is no such file of allowed signers.
    """
    with tempfile.NamedTemporaryFile(prefix="edgeloop-", suffix=".sig") as file:
        file.write(signature)
        file.flush()
        given = ["-n", NAMESPACE, "-s", file.name]
        done = _ssh_keygen(["-Y", "check-novalidate", *given], manifest)
        if done.returncode != 0:
            raise SignatureError(f"its signature does not fit its manifest: {_reason(done)}")
        signer = None if allowed_signers is None else _signer(manifest, given, allowed_signers)
    good = _GOOD.search(done.stdout.decode(errors="replace"))
    kind, key = (good["kind"], good["key"]) if good else ("unknown", "unknown")
    return Signed(kind, key, signer)


def verify_bundle(bundle: Bundle, allowed_signers: Path | None) -> Signed | None:
    """Who signed a bundle; None where nobody did and nobody must have.

    Args:
        bundle: an opened one.
        allowed_signers: one of these must have signed it; None when any signature that fits will do, and none, too.

    Raises:
        SignatureError: not signed by one of them, or the signature does not fit.
    """
    try:
        if bundle.signature is not None:
            return verify(bundle.raw, bundle.signature, allowed_signers)
    except SignatureError as error:
        raise SignatureError(f"{bundle.path}: {error}") from error
    if allowed_signers is not None:
        raise SignatureError(
            f"{bundle.path}: it is not signed, and {allowed_signers} says who must have; sign it with: "
            "edgeloop convert --sign KEY"
        )
    return None


def _signer(manifest: bytes, given: list[str], allowed_signers: Path) -> str:
    if not allowed_signers.is_file():
        raise ConfigError(f"{allowed_signers}: no such file; it lists who may sign, a line `NAME ssh-ed25519 KEY` each")
    found = _ssh_keygen(["-Y", "find-principals", *given, "-f", str(allowed_signers)], b"")
    for name in found.stdout.decode(errors="replace").splitlines():
        done = _ssh_keygen(["-Y", "verify", *given, "-f", str(allowed_signers), "-I", name], manifest)
        if done.returncode == 0:
            return name
    raise SignatureError(f"it is signed by a key that {allowed_signers} does not allow")


def _ssh_keygen(
    arguments: list[str], given: bytes, *, timeout_s: float | None = _TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],  # noqa: S607  from PATH, as ssh itself is
            input=given,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
    except FileNotFoundError as error:
        raise SignatureError(
            "ssh-keygen is not installed, and signatures need it: apt install openssh-client"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SignatureError(f"ssh-keygen did not answer within {timeout_s:g} s") from error


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"it ended with {done.returncode}"
