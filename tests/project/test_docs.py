"""README and docs are true: what they name exists, what exists is named, examples run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import msgspec
import pytest
import yaml

from edge_agent.bundle import open_bundle
from edge_agent.bundle.manifest import Manifest
from edge_agent.cli import COMMANDS, cli
from edge_agent.commands.bench import bench_command
from edge_agent.config import Settings, load_settings
from edge_agent.messages import Info, Observation

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.needs("git")
def test_the_tree_is_the_tree() -> None:
    block = re.search(r"```text\n(edge_agent/.*?)```", CONTRIBUTING, re.DOTALL)
    assert block is not None
    named = set(re.findall(r"^([\w.]+)/", block[1], re.MULTILINE))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    assert named == folders
    package = ""
    inside = 0
    for line in block[1].splitlines():
        if entry := re.match(r"  ([\w.]+/?)", line):
            assert (ROOT / package / entry[1]).exists(), f"{package}{entry[1]}"
            inside += 1
        elif folder := re.match(r"[\w.]+/", line):
            package = folder[0]
    assert inside


def test_every_command_is_in_the_reference_once_and_in_a_guide() -> None:
    listed = re.findall(r"^commands: (.+)$", page("reference/cli.md"), re.MULTILINE)
    assert sorted(" ".join(listed).split()) == sorted(COMMANDS)
    guides = "\n".join(path.read_text() for path in PAGES if path.name not in ("cli.md", "CHANGELOG.md"))
    for command in COMMANDS:
        assert f"edgeloop {command}" in guides, command


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_shown_exist(path: Path) -> None:
    for line in command_lines(path.read_text()):
        words = shlex.split(line, comments=True)[1:]
        command: click.Command = cli
        context = click.Context(cli)
        while words and isinstance(command, click.Group) and words[0] in command.list_commands(context):
            inner = command.get_command(context, words.pop(0))
            assert inner is not None, line
            command, context = inner, click.Context(inner, context)
        assert command is not cli or not words or words[0].startswith("-") or words[0].isupper(), line
        if command is bench_command:  # without a command of its own it measures
            command = bench_command.commands["measure"]
        options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in options, f"{line}: {word}"


def command_lines(text: str) -> list[str]:
    """Every call of edgeloop in blocks and spans of code, a line each."""
    blocks = re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^(?: {4}.*\n)+", text, re.MULTILINE)
    code = "\n".join(textwrap.dedent(block) for block in (*blocks, *indented)).replace("\\\n", " ")
    return [
        *re.findall(r"^edgeloop .*", code, re.MULTILINE),
        *(span.rstrip(".") for span in re.findall(r"`(edgeloop [^`\n]+)`", text)),
    ]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/quickstart.md", "docs/guides/bench.md"])
def test_make_targets_named_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`| {4})make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert named
    for target in named:
        assert re.search(rf"^(?:[a-z-]+ )*{target}(?: [a-z-]+)*:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def keys(struct: type[msgspec.Struct], prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in msgspec.structs.fields(struct):
        inner = next((t for t in (field.type, *getattr(field.type, "__args__", ())) if is_struct(t)), None)
        if field.encode_name == "cameras":
            from edge_agent.config import CameraSettings

            found += keys(CameraSettings, "cameras.NAME.")
        elif field.encode_name == "classes":
            from edge_agent.config import ClassSettings

            found += keys(ClassSettings, f"{prefix}classes.LABEL.")
        elif inner is not None:
            found += keys(inner, f"{prefix}{field.encode_name}.")
        else:
            found.append(f"{prefix}{field.encode_name}")
    return found


def is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def test_every_setting_is_documented_with_its_default() -> None:
    text = page("reference/agent-yaml.md")
    for key in keys(Settings):
        assert f"`{key}`" in text, key
    assert set(re.findall(r"`((?:mqtt|decision|cameras\.NAME)\.\w+)`", text)) <= set(keys(Settings)) | {"mqtt.results"}


def test_every_manifest_and_message_field_is_documented() -> None:
    for field in msgspec.structs.fields(Manifest):
        assert f"`{field.encode_name}`" in page("reference/bundle.md"), field
    for field in msgspec.structs.fields(Info):
        assert f"`{field.encode_name}`" in page("reference/mqtt.md"), field
    block = re.search(r"```json\n(.*?)```", page("reference/mqtt.md"), re.DOTALL)
    assert block is not None
    example = msgspec.json.decode(block[1], type=Observation)
    fields = {field.encode_name for field in msgspec.structs.fields(Observation)}
    assert set(msgspec.json.decode(block[1])) == fields - {"clock"}  # which a device whose clock is set omits
    assert "| `clock` |" in page("reference/mqtt.md")
    assert example.label == "robin"


def test_the_settings_shown_are_accepted(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", page("reference/agent-yaml.md"), re.DOTALL)
    assert block is not None
    (tmp_path / "agent.yaml").write_text(block[1])
    assert load_settings(tmp_path / "agent.yaml").device == "porch-pi"
    assert load_settings(ROOT / "examples/agent.yaml").cameras["gate"].loop
    assert yaml.safe_load(block[1])["cameras"]["feeder"]["source"] == 0


def test_the_python_example_runs(bundle_file: Path, photo_folder: Path) -> None:
    command = [sys.executable, "examples/classify.py", str(bundle_file), str(photo_folder / "stars/00.jpg")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"00\.jpg: stars \([01]\.\d\d\)", ran.stdout)
    assert ran.stderr == ""


def test_the_files_of_a_run_and_a_bundle_are_documented(run_folder: Path, bundle_file: Path) -> None:
    for file in run_folder.iterdir():
        assert f"`{file.name}`" in page("reference/run.md")
    for name in open_bundle(bundle_file).manifest.files:
        assert re.sub(r"\d{3}\.jpg", "NNN.jpg", name) in page("reference/bundle.md")


def test_the_changelog_names_the_commands() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for command in COMMANDS:
        assert f"`{command}`" in changelog or f"`edgeloop {command}`" in changelog


@pytest.mark.needs("git")
def test_nothing_speaks_of_the_machine_it_was_made_on() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for path in tracked:
        if (ROOT / path).is_dir():  # a link to a directory
            continue
        text = (ROOT / path).read_text(errors="replace")
        for word in ("/" + "work/", "python" + "hosted", "/root" + "/."):
            assert word not in text, f"{path}: {word}"


def test_every_backbone_and_every_choice_of_training_is_documented() -> None:
    from trainer.backbones import BACKBONES
    from trainer.commands.train import train_command

    text = page("guides/training.md")
    for backbone in BACKBONES.values():
        assert f"| `{backbone.name}` | {backbone.default_size} |" in text
        assert backbone.int8 in text
    for option in train_command.params:
        for name in option.opts:
            # What --help says in full is not repeated; what needs a reason is.
            if name in (
                "--weights",
                "--fine-tune",
                "--augment",
                "--group-by",
                "--split-from",
                "--resume",
                "--distribute",
            ):
                assert f"`{name}" in text or f"{name} " in text, name


def test_the_figures_of_a_run_are_documented(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for key in (*metrics, *metrics["test"]):
        assert f"`{key}`" in page("reference/run.md"), key
