"""Root of the one command, `edgeloop`: a table of names, each loaded only when it is called."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ._version import __version__
from .errors import EdgeloopError, one_line
from .extras import load_command

# name: module, command object in it, the extra it needs ("" is the plain install), what it does
COMMANDS = {
    "demo": (
        "deploy.commands.demo",
        "demo_command",
        "demo",
        "The whole loop on real photographs; needs no camera, broker or network.",
    ),
    "train": ("trainer.commands.train", "train_command", "train", "Train a classifier on a folder of photographs."),
    "evaluate": (
        "trainer.commands.evaluate",
        "evaluate_command",
        "train",
        "Score a run or a bundle on a folder of photographs.",
    ),
    "convert": (
        "converter.commands.convert",
        "convert_command",
        "train",
        "Quantize a run to int8, prove it, pack it as a bundle.",
    ),
    "export": ("converter.commands.export", "export_command", "train", "Write a run for TensorFlow Serving."),
    "shortlist": (
        "trainer.commands.shortlist",
        "shortlist_command",
        "train",
        "Choose what to label from very many captures.",
    ),
    "review": ("trainer.commands.review", "review_command", "train", "Label captured frames in the browser."),
    "retrain": (
        "deploy.commands.retrain",
        "retrain_command",
        "train",
        "Learn the labelled frames; promote what is no worse.",
    ),
    "loop": ("deploy.commands.loop", "loop_command", "train,deploy", "Once round the loop: pull, wait, retrain, push."),
    "search": (
        "deploy.commands.search",
        "search_command",
        "train",
        "Choose network and input size by measured latency.",
    ),
    "deploy": (
        "deploy.commands.deploy",
        "deploy_command",
        "deploy",
        "Devices over SSH: set up, send models, fetch captures.",
    ),
    "inspect": ("edge_agent.commands.inspect", "inspect_command", "", "Show what is in a bundle."),
    "predict": ("edge_agent.commands.predict", "predict_command", "", "Classify image files."),
    "serve": ("edge_agent.commands.serve", "serve_command", "", "Classify images sent over HTTP."),
    "bench": ("edge_agent.commands.bench", "bench_command", "", "Measure latency on this machine; compare reports."),
    "cameras": ("edge_agent.commands.cameras", "cameras_command", "", "List the cameras of this machine."),
    "run": ("edge_agent.commands.run", "run_command", "", "Run the agent: cameras to labels over MQTT."),
    "install": ("edge_agent.commands.install", "install_command", "", "Prove a bundle on this device and run it."),
    "receive": ("edge_agent.commands.receive", "receive_command", "", "Take a bundle from `edgeloop deploy push`."),
    "captures": ("edge_agent.commands.captures", "captures_command", "", "Hand captures to `edgeloop deploy pull`."),
    "rollback": ("edge_agent.commands.rollback", "rollback_command", "", "Go back to the model before."),
    "drift": ("edge_agent.commands.drift", "drift_command", "", "Does the model still fit what this device sees?"),
    "status": ("edge_agent.commands.status", "status_command", "", "Show the models of this device."),
}


class Commands(click.Group):
    """The table above as a group; `edgeloop --help` imports none of it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """In the order of the loop."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of one command."""
        if name not in COMMANDS:
            return None
        module, attribute, extra, _ = COMMANDS[name]
        return load_command(f"edgeloop {name}", module, attribute, extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list in `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (*_, text) in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeloop")
def cli() -> None:
    """Image classification for cameras at the edge: photographs to int8 model to labels over MQTT."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit 0 done, 1 refused or failed (the reason in one line), 2 wrong use."""
    # OpenCV reports damaged files on its own as well; ours is the one line that counts.
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
        # The reader went away, as `head` does. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        click.echo(f"edgeloop: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
