"""OpenSSH signatures over `manifest.json`, created and verified by `ssh-keygen -Y`.

The manifest contains the hash of every other file, so a signature over it covers the whole bundle. Keys and the file
`allowed_signers` are those of OpenSSH (ssh-keygen(1), "ALLOWED SIGNERS"); edgeloop has no key format, cryptography or
key store of its own.
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
"""Purpose recorded in a signature. A signature by the same key of a git commit or a mail is not valid for a bundle."""
_TIMEOUT_S = 30
_GOOD = re.compile(r'Good "[^"]*" signature(?: for .*?)? with (?P<kind>\S+) key (?P<key>SHA256:\S+)')


@dataclass(frozen=True)
class Signed:
    """A valid signature of a manifest.

    Attributes:
        kind: kind of the key, such as ED25519.
        key: fingerprint of the key, SHA256:…
        signer: name of the key in `allowed_signers`; None if no such file was given.
    """

    kind: str
    key: str
    signer: str | None


def sign(manifest: bytes, key: Path) -> bytes:
    """Sign a manifest with a private key, or with a public key whose private key ssh-agent holds.

    ssh-keygen asks for a passphrase on the terminal.

    Raises:
        ConfigError: there is no such key, or ssh-keygen cannot sign with it.
    """
    if not key.is_file():
        raise ConfigError(f"{key}: no such key; create one with: ssh-keygen -t ed25519 -f {key}")
    # No time limit: the user may be typing a passphrase.
    done = _ssh_keygen(["-Y", "sign", "-f", str(key), "-n", NAMESPACE], manifest, timeout_s=None)
    if done.returncode != 0:
        raise ConfigError(f"{key}: ssh-keygen cannot sign with this key: {_reason(done)}")
    return done.stdout


def verify(manifest: bytes, signature: bytes, allowed_signers: Path | None) -> Signed:
    """Verify the signature of a manifest. If ``allowed_signers`` is given, the signer must be one of them.

    Raises:
        SignatureError: the signature is not valid, is from another signer, or cannot be verified on this machine.
        ConfigError: the file of allowed signers does not exist.
    """
    with tempfile.NamedTemporaryFile(prefix="edgeloop-", suffix=".sig") as file:
        file.write(signature)
        file.flush()
        options = ["-n", NAMESPACE, "-s", file.name]
        done = _ssh_keygen(["-Y", "check-novalidate", *options], manifest)
        if done.returncode != 0:
            raise SignatureError(f"its signature does not match its manifest: {_reason(done)}")
        signer = None if allowed_signers is None else _signer(manifest, options, allowed_signers)
    good = _GOOD.search(done.stdout.decode(errors="replace"))
    kind, key = (good["kind"], good["key"]) if good else ("unknown", "unknown")
    return Signed(kind, key, signer)


def verify_bundle(bundle: Bundle, allowed_signers: Path | None) -> Signed | None:
    """Verify the signature of a bundle and return it; return None if the bundle is not signed and need not be signed.

    Args:
        bundle: an opened bundle.
        allowed_signers: file of allowed signers, one of whom must have signed the bundle; None accepts any valid
            signature and unsigned bundles.

    Raises:
        SignatureError: the bundle is not signed by an allowed signer, or the signature is not valid.
    """
    try:
        if bundle.signature is not None:
            return verify(bundle.raw, bundle.signature, allowed_signers)
    except SignatureError as error:
        raise SignatureError(f"{bundle.path}: {error}") from error
    if allowed_signers is not None:
        raise SignatureError(
            f"{bundle.path}: it is not signed, but a signature by a key in {allowed_signers} is required; sign it "
            "with: edgeloop convert --sign KEY"
        )
    return None


def _signer(manifest: bytes, options: list[str], allowed_signers: Path) -> str:
    if not allowed_signers.is_file():
        raise ConfigError(
            f"{allowed_signers}: no such file; create it with one line `NAME ssh-ed25519 KEY` per allowed signer"
        )
    found = _ssh_keygen(["-Y", "find-principals", *options, "-f", str(allowed_signers)], b"")
    refused = [found]
    for name in found.stdout.decode(errors="replace").splitlines():
        done = _ssh_keygen(["-Y", "verify", *options, "-f", str(allowed_signers), "-I", name], manifest)
        if done.returncode == 0:
            return name
        refused.append(done)
    # ssh-keygen names the line of the file and the reason, such as an expired key, on stderr.
    lines = (line.strip() for done in refused for line in done.stderr.decode(errors="replace").splitlines())
    reasons = list(dict.fromkeys(line for line in lines if line.startswith(f"{allowed_signers}:")))
    if reasons:
        raise SignatureError(f"it is signed by a key that is not accepted: {'; '.join(reasons)}")
    raise SignatureError(f"it is signed by a key that is not in {allowed_signers}")


def _ssh_keygen(
    arguments: list[str], data: bytes, *, timeout_s: float | None = _TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],  # noqa: S607  from PATH, as ssh itself is
            input=data,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
    except FileNotFoundError as error:
        raise SignatureError(
            "ssh-keygen, which is needed for signatures, is not installed; install it with: apt install openssh-client"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SignatureError(f"ssh-keygen did not answer within {timeout_s:g} s") from error


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"exit code {done.returncode}"
