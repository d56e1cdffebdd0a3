"""`edgeloop review`: label captured frames in the browser."""

from __future__ import annotations

import asyncio
import getpass
import secrets
import webbrowser
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import click
from rich.console import Console

from edge_agent.atomic_files import replacing
from edge_agent.errors import MissingExtraError
from edge_agent.web.access import Access, is_loopback
from edge_agent.web.server import listen, make_server

PORT = 8099


@click.command("review", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("captures", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="Run whose model suggests labels and chooses the frames.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; beyond loopback, visitors need the token that is printed.",
)
@click.option(
    "--port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 for any free port.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name that browsers may use for this machine, besides its host name and its addresses; can be repeated.",
)
@click.option("--open/--no-open", "show", default=True, help="Open the page in the browser of this machine.")
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the labels as a CSV file for `edgeloop train` and exit. FILE must be in or above CAPTURES.",
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder in which embeddings are kept between sessions.")
def review_command(
    captures: Path,
    run: Path | None,
    host: str,
    port: int,
    export: Path | None,
    cache: Path | None,
    hosts: tuple[str, ...],
    *,
    show: bool,
) -> None:
    """Label the frames in CAPTURES, a folder fetched with `edgeloop deploy pull` or any folder of images.

    A page in the browser shows the most useful frames first, with similar frames side by side, and the model's
    suggestion: Enter accepts it, a digit selects another class. Every annotation is saved immediately to
    CAPTURES/labels.jsonl. Several people can label one folder.
    """
    console = Console()
    if export is not None:
        _export(captures, export, console)
        return
    for module in ("starlette", "uvicorn"):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingExtraError("the review page", "review", error.name) from error
    from ..review.server import make_app
    from ..review.session import Session

    listening = listen(host, port, what="edgeloop review", remedy="name another --port or --host")
    try:
        with Session(captures, run=run, console=console, cache=cache) as session:
            for problem in session.problems[:5]:
                console.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)
            if len(session.problems) > 5:
                console.print(
                    f"and {len(session.problems) - 5} more, listed on the page", style="yellow", soft_wrap=True
                )
            token = None if is_loopback(host) else secrets.token_urlsafe(24)
            access = Access.on(host, secret=token, hosts=hosts, remedy="use --allow-host")
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{listening[0].getsockname()[1]}/" + (f"?token={token}" if token else "")
            with suppress(KeyboardInterrupt):  # the normal way to end the review
                console.print(
                    f"{len(session.frames)} frames; label them at {address}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
                console.print("Press Ctrl-C to stop; all annotations are already saved", style="dim")
                if show and console.is_terminal:
                    webbrowser.open(address)
                server = make_server(make_app(session, access=access, you=user() if access.loopback else ""))
                asyncio.run(server.serve(sockets=listening))
    finally:
        for one in listening:
            one.close()


def user() -> str:
    """Return the name of the user of this machine, or "" if unknown."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _export(captures: Path, target: Path, console: Console) -> None:
    """Write the annotations as a CSV file, without loading a model."""
    from edge_agent.errors import ConfigError

    from ..active_learning.annotations import Annotations
    from ..active_learning.captured_frames import find_frames
    from ..review.export import as_csv

    inside, above = captures.resolve(), target.parent.resolve()
    if not inside.is_relative_to(above):
        raise ConfigError(
            f"{target}: the file must be in or above {captures}: the paths in a list are relative to the list"
        )
    decisions, found = Annotations(captures), find_frames(captures)
    labels = [
        ((inside / frame.path).relative_to(above).as_posix(), decision.label)
        for frame in found.frames
        if (decision := decisions.latest.get(frame.sha256)) is not None and decision.verdict == "label"
    ]
    with replacing(target) as file:
        file.write(as_csv(labels).encode())
    for problem in (*decisions.problems, *found.problems):
        console.print(problem, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"wrote {len(labels)} labels for {len(found.frames)} frames to {target}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
