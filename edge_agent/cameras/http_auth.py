"""Answers to a camera that asks for a password: HTTP Basic (RFC 7617) and Digest (RFC 7616; without qop, RFC 2069)."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from urllib.request import parse_http_list, parse_keqv_list

Authorize = Callable[[str], str]
"""Function from the target of a GET request to the value of its ``Authorization`` header."""

_HASHES = {"MD5": "md5", "SHA-256": "sha256", "SHA-512-256": "sha512_256"}


class Credentials(NamedTuple):
    """A user name and a password."""

    user: str
    password: str


def answer(challenges: Sequence[str], credentials: Credentials) -> Authorize | None:
    """Choose how to answer a 401 response: Digest, which does not reveal the password, before Basic.

    Args:
        challenges: Values of its ``WWW-Authenticate`` headers; without any, Basic is tried.
        credentials: User name and password of the camera.

    Returns:
        None if the camera offers neither, or a Digest algorithm that is not known.
    """
    pair = base64.b64encode(f"{credentials.user}:{credentials.password}".encode()).decode()
    chosen = None
    for challenge in challenges or ["Basic"]:
        scheme, _, rest = challenge.strip().partition(" ")
        if scheme.lower() == "digest" and (digest := _digest(rest, credentials)) is not None:
            return digest
        if scheme.lower() == "basic":
            chosen = partial(_basic, pair)
    return chosen


def _basic(pair: str, _target: str) -> str:
    return f"Basic {pair}"


def _digest(challenge: str, credentials: Credentials) -> Authorize | None:
    try:
        told = {key.lower(): value for key, value in parse_keqv_list(parse_http_list(challenge)).items()}
        realm, nonce = told["realm"], told["nonce"]
    except (KeyError, ValueError, IndexError):
        return None
    algorithm = told.get("algorithm", "MD5")
    name, is_session = algorithm.upper().removesuffix("-SESS"), algorithm.upper().endswith("-SESS")
    qops = [qop.strip().lower() for qop in told.get("qop", "").split(",") if qop.strip()]
    if name not in _HASHES or (qops and "auth" not in qops):
        return None
    count = 0

    def hashed(*parts: str) -> str:
        return hashlib.new(_HASHES[name], ":".join(parts).encode(), usedforsecurity=False).hexdigest()

    def authorize(target: str) -> str:
        nonlocal count
        count += 1
        number, own = f"{count:08x}", secrets.token_hex(8)
        secret = hashed(credentials.user, realm, credentials.password)
        if is_session:
            secret = hashed(secret, nonce, own)
        middle = (nonce, number, own, "auth") if qops else (nonce,)
        fields = {
            "username": credentials.user,
            "realm": realm,
            "nonce": nonce,
            "uri": target,
            "response": hashed(secret, *middle, hashed("GET", target)),
        }
        text = ", ".join(f'{key}="{_quoted(value)}"' for key, value in fields.items())
        if "algorithm" in told:
            text += f", algorithm={algorithm}"
        if "opaque" in told:
            text += f', opaque="{_quoted(told["opaque"])}"'
        if qops:
            text += f', qop=auth, nc={number}, cnonce="{own}"'
        return f"Digest {text}"

    return authorize


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
