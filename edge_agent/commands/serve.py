"""`edgeloop serve`: classify images over HTTP."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import click

from ..errors import ConfigError, MissingExtraError

PORT = 8100


@click.command("serve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; all but loopback require a token.",
)
@click.option(
    "--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks any free port."
)
@click.option("--workers", type=click.IntRange(1, 64), help="Number of interpreters; one per core by default.")
@click.option("--delegate", help="Shared library of an external delegate, such as Coral's libedgetpu.so.1.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token that clients send as `Authorization: Bearer`. Without it, a random token is generated "
    "for addresses other than loopback.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name that clients may use for this machine, besides its host name and its addresses; can be repeated.",
)
def serve_command(
    bundle: Path,
    host: str,
    port: int,
    workers: int | None,
    delegate: str | None,
    token_file: Path | None,
    hosts: tuple[str, ...],
) -> None:
    """Classify images sent over HTTP with the model in BUNDLE.

    POST an image file to /v1/classify; /openapi.json describes the API. The images of all clients are distributed
    over one interpreter per core.
    """
    for module in ("starlette", "uvicorn"):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError("the web service", "review", error.name) from error
    from ..bundle import open_bundle
    from ..serve.api import make_app
    from ..serve.workers import Workers
    from ..web.access import Access, is_loopback
    from ..web.server import listen, make_server

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(message)s")
    token = _token(token_file, loopback=is_loopback(host))
    access = Access.on(host, secret=token, hosts=hosts, remedy="use --allow-host")
    opened = open_bundle(bundle)
    listening = listen(host, port, what="edgeloop serve", remedy="set another --port or --host")
    try:
        with Workers(opened, count=workers, delegate=delegate) as pool, suppress(KeyboardInterrupt):
            url_host = f"[{host}]" if ":" in host else host
            address = f"http://{url_host}:{listening[0].getsockname()[1]}"
            manifest = opened.manifest
            click.echo(
                f"{manifest.name} {manifest.version} at {address}/v1/classify, described by {address}/openapi.json"
            )
            if token is not None and token_file is None:
                click.echo(f"clients send: Authorization: Bearer {token}")
            app = make_app(opened, pool, access=access)
            asyncio.run(make_server(app).serve(sockets=listening))
    finally:
        for one in listening:
            one.close()


def _token(file: Path | None, *, loopback: bool) -> str | None:
    if file is None:
        return None if loopback else secrets.token_urlsafe(24)
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: {file}: {error}") from error
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise ConfigError(f"--token-file: {file}: expected a token of at least 16 printable characters without spaces")
    return token
