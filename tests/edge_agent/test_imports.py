"""The layers, held in fresh interpreters; the import contracts hold them in the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edge_agent

ROOT = Path(edge_agent.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)
DESKTOP = (
    "tensorflow",
    "keras",
    "jax",
    "torch",
    "rich",
    "matplotlib",
    "jinja2",
    "PIL",
    "scipy",
    "trainer",
    "converter",
    "deploy",
)


def imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_no_device_module_imports_a_desktop_library(module: str) -> None:
    assert not imported(f"import {module}").intersection(DESKTOP)


def test_importing_the_package_is_free() -> None:
    heavy = {"numpy", "cv2", "paho", "yaml", "msgspec", "click", "ai_edge_litert"}
    assert not imported("import edge_agent").intersection(heavy)


def test_help_imports_no_command() -> None:
    code = "from edge_agent.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not imported(code).intersection(
        {"numpy", "cv2", "edge_agent.bundle", "edge_agent.commands", "trainer", "deploy"}
    )


def test_importing_the_trainer_and_the_converter_starts_no_framework() -> None:
    for module in ("trainer.commands.train", "converter.commands.convert", "deploy.commands.demo"):
        assert not imported(f"import {module}").intersection({"tensorflow", "keras", "matplotlib"})


def test_the_public_names_are_these_and_all_exist() -> None:
    assert edge_agent.__all__ == [
        "Bundle",
        "Classifier",
        "EdgeloopError",
        "Health",
        "Info",
        "Observation",
        "PreprocessSpec",
        "ReceivedMessage",
        "Reply",
        "Result",
        "Score",
        "Tunables",
        "__version__",
        "open",
        "open_bundle",
        "preprocess",
        "read_image",
        "read_message",
    ]
    for name in edge_agent.__all__:
        assert getattr(edge_agent, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = edge_agent.nonsense


def test_the_old_name_of_read_image_still_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="edge_agent.read_picture is now edge_agent.read_image"):
        assert edge_agent.read_picture is edge_agent.read_image


def test_the_trainers_and_the_converters_public_names_are_these_and_all_exist() -> None:
    import converter
    import trainer

    assert trainer.__all__ == ["Evaluated", "Progress", "Reading", "Recipe", "TrainedRun", "evaluate", "train"]
    assert converter.__all__ == [
        "Converted",
        "GateError",
        "GateLimits",
        "GateOutcome",
        "Progress",
        "Refusal",
        "Verdict",
        "convert",
    ]
    for package in (trainer, converter):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            _ = package.nonsense


@pytest.mark.parametrize(
    ("public", "before"),
    [
        ("trainer.train", "trainer.commands.train"),
        ("trainer.evaluate", "trainer.commands.evaluate"),
        ("converter.convert", "converter.commands.convert"),
        ("edge_agent.preprocess", "edge_agent.inference.classifier"),
    ],
)
def test_a_public_function_is_not_hidden_by_a_module_of_its_name(public: str, before: str) -> None:
    package = public.partition(".")[0]
    imported(f"import {package}, {before}\nassert callable({public})")
