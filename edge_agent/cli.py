"""The command `edgeloop`: a table of subcommands, each imported only when it is called."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, NoReturn

import click

from ._version import __version__
from .errors import EdgeloopError, one_line
from .extras import load_command

# name: module, command object in the module, required extra ("" for none), description
COMMANDS = {
    "demo": (
        "deploy.commands.demo",
        "demo_command",
        "demo",
        "Run the whole loop on photos; needs no camera, broker or network.",
    ),
    "train": ("trainer.commands.train", "train_command", "train", "Train a classifier on a folder of images."),
    "evaluate": (
        "trainer.commands.evaluate",
        "evaluate_command",
        "train",
        "Evaluate a run or a bundle on a folder of images.",
    ),
    "convert": (
        "converter.commands.convert",
        "convert_command",
        "train",
        "Quantize a run to int8, check its accuracy and pack a bundle.",
    ),
    "export": ("converter.commands.export", "export_command", "train", "Export a run for TensorFlow Serving."),
    "shortlist": (
        "trainer.commands.shortlist",
        "shortlist_command",
        "train",
        "Select the captures that are most worth labelling.",
    ),
    "review": ("trainer.commands.review", "review_command", "train", "Label captured frames in the browser."),
    "retrain": (
        "deploy.commands.retrain",
        "retrain_command",
        "train",
        "Retrain on labelled captures and compare with the champion.",
    ),
    "loop": (
        "deploy.commands.loop",
        "loop_command",
        "train,deploy",
        "Run one round of the loop: pull, wait for labels, retrain, push.",
    ),
    "search": (
        "deploy.commands.search",
        "search_command",
        "train",
        "Find the best network and input size for a latency budget.",
    ),
    "deploy": (
        "deploy.commands.deploy",
        "deploy_command",
        "deploy",
        "Manage devices over SSH: set up, push models, pull captures.",
    ),
    "inspect": ("edge_agent.commands.inspect", "inspect_command", "", "Show the contents of a bundle."),
    "predict": ("edge_agent.commands.predict", "predict_command", "", "Classify image files."),
    "serve": ("edge_agent.commands.serve", "serve_command", "", "Classify images sent over HTTP."),
    "bench": ("edge_agent.commands.bench", "bench_command", "", "Measure latency on this machine; compare reports."),
    "cameras": ("edge_agent.commands.cameras", "cameras_command", "", "List the cameras of this machine."),
    "run": ("edge_agent.commands.run", "run_command", "", "Run the agent: classify camera frames, publish labels."),
    "install": ("edge_agent.commands.install", "install_command", "", "Test a bundle on this device and activate it."),
    "receive": ("edge_agent.commands.receive", "receive_command", "", "Receive a bundle from `edgeloop deploy push`."),
    "captures": ("edge_agent.commands.captures", "captures_command", "", "Send captures to `edgeloop deploy pull`."),
    "rollback": ("edge_agent.commands.rollback", "rollback_command", "", "Go back to the previous model."),
    "drift": ("edge_agent.commands.drift", "drift_command", "", "Check whether the model still fits its cameras."),
    "status": ("edge_agent.commands.status", "status_command", "", "Show the models installed on this device."),
    "forget": (
        "edge_agent.commands.forget",
        "forget_command",
        "",
        "Clear what a device that is gone left at the broker.",
    ),
}


class Commands(click.Group):
    """A click group of the commands in the table. `edgeloop --help` lists them without importing any of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names of the commands in the order in which they are used: train, convert, deploy, run ..."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one command."""
        if name not in COMMANDS:
            return None
        module, attribute, extra, _ = COMMANDS[name]
        return load_command(f"edgeloop {name}", module, attribute, extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands in `--help` from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (*_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeloop")
def cli() -> None:
    """Image classification for edge cameras: train on photos, convert to int8, publish labels over MQTT."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit status: 0 success, 1 failure (one line says why), 2 wrong usage."""
    # OpenCV also reports damaged files itself; one line, ours, is enough.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    try:
        code: Any = cli.main(arguments, prog_name="edgeloop", standalone_mode=False)
    except EdgeloopError as error:
        click.echo(f"edgeloop: {one_line(error)}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgeloop: interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # The reader, such as `head`, has exited. Python would report the error again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        click.echo(f"edgeloop: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        code = 1
    _exit(code if isinstance(code, int) else 0)


def _exit(code: int) -> NoReturn:
    """End the process, even if a camera's driver hangs.

    When Python shuts down, it unwinds the stack of each thread that returns from native code. OpenCV's code does not
    allow that, and the process would abort (SIGABRT).
    """
    cameras = sys.modules.get("edge_agent.cameras.reconnect")
    if cameras is None or not any(thread.name == cameras.READER for thread in threading.enumerate()):
        sys.exit(code)
    import logging

    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
