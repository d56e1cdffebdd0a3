"""`agent.yaml` as typed settings. docs/agent.md describes every key.

A key nobody knows is an error with a suggestion, and every problem is reported at once: a device
is configured from afar, and each round trip costs.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .errors import ConfigError
from .yaml_files import checked, read_yaml

log = logging.getLogger(__name__)

DEFAULT_PATH = Path("/etc/edgeloop/agent.yaml")

Slug = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z", description="letters, digits, - and _")
]
# What the resolver takes without raising: labels of 1 to 63 characters, or an IPv6 address.
_HOST = r"^[A-Za-z0-9_:-]{1,63}(?:\.[A-Za-z0-9_:-]{1,63})*\.?\Z"
Host = Annotated[str, msgspec.Meta(pattern=_HOST, max_length=253)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
_Pixels = Annotated[int, msgspec.Meta(ge=16, le=16384)]
# One level of a topic, or several: no wildcards, none empty, not the broker's own ($SYS).
TopicPrefix = Annotated[
    str, msgspec.Meta(pattern=r"^[^+#/$\x00-\x1f][^+#/\x00-\x1f]*(?:/[^+#/\x00-\x1f]+)*\Z", max_length=100)
]


class MotionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Classify only when the image changed; see `edge_agent.cameras.motion`.

    Attributes:
        threshold: levels, of 255, by which some part of the image must differ from when it was last classified.
        every_s: seconds after which it is classified although nothing changed.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0.5, le=255)] = 6.0
    every_s: Annotated[float, msgspec.Meta(ge=0.1, le=86400)] = 10.0


class CameraSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One camera.

    Attributes:
        source: a device number (``0``), a device (``/dev/video0``), ``picamera`` or ``picamera:1``, an ``rtsp://``
            or ``http://`` address, a video file or a folder of images, the last two relative to agent.yaml.
        loop: start a video file or a folder again when it ends.
        size: width and height to ask the camera for, pixels; the camera's own choice when left out.
        fps: frames a second to ask the camera for, or to show a folder of images at.
        region: part of the image to classify: left, top, right, bottom, each a fraction of width or height.
        timeout_s: seconds without a frame after which the camera counts as lost.
        frozen_s: seconds of exactly the same image after which it counts as frozen; 0 never.
        motion: classify only when the image changed; ``{}`` is enough.
    """

    source: int | str
    loop: bool = False
    size: tuple[_Pixels, _Pixels] | None = None
    fps: Annotated[float, msgspec.Meta(ge=0.01, le=1000)] | None = None
    region: tuple[Fraction, Fraction, Fraction, Fraction] = (0.0, 0.0, 1.0, 1.0)
    timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 5.0
    frozen_s: Seconds = 30.0
    motion: MotionSettings | None = None


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An encrypted connection; every file is PEM, relative to agent.yaml.

    Attributes:
        ca: authorities one of which must have signed the broker's certificate; the system's when left out.
        certificate, key: this device's own, for brokers that ask for one; the key without a passphrase.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker.

    Attributes:
        host, port: where it listens.
        protocol: MQTT version.
        username: account at the broker.
        password_file: file whose first line is the password, relative to agent.yaml. The
            environment variable EDGELOOP_MQTT_PASSWORD is used when it is left out.
        prefix: first level of every topic.
        results: also publish every single inference.
        keepalive_s: seconds; the broker announces our death after one and a half of them.
        event_expiry_s: seconds after which an event that was not delivered is dropped.
        tls: encrypt the connection; ``{}`` is enough where the system knows the broker's authority.
        commands: take commands (snapshot, set, install, activate, rollback, bench).
        discovery: Home Assistant's discovery prefix, usually ``homeassistant``; none announces nothing.
    """

    host: Host = "localhost"
    port: Port = 1883
    protocol: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    password_file: str | None = None
    prefix: Slug = "edgeloop"
    results: bool = False
    keepalive_s: Annotated[int, msgspec.Meta(ge=2, le=3600)] = 30
    event_expiry_s: Annotated[float, msgspec.Meta(ge=1, le=31_536_000)] = 604_800
    tls: TlsSettings | None = None
    commands: bool = True
    discovery: TopicPrefix | None = None


class ClassSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for one label alone; left out, what holds for all."""

    enter: Fraction | None = None
    leave: Fraction | None = None
    min_time_s: Seconds | None = None


class DecisionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How scores become a label; see `edge_agent.inference.decision`.

    Attributes:
        smoothing_s: time constant of the scores' moving average, seconds; 0 takes each frame as it is.
        enter: smoothed score a label must reach; the bundle's when left out.
        leave: smoothed score under which a label is given up; the bundle's when left out.
        min_time_s: seconds a new label must hold before it is decided.
        classes: by label, what holds for it alone.
    """

    smoothing_s: Seconds = 0.5
    enter: Fraction | None = None
    leave: Fraction | None = None
    min_time_s: Seconds = 0.3
    classes: dict[str, ClassSettings] = {}


class InstallSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which models may come over MQTT.

    Attributes:
        unsigned: take bundles nobody signed, too; otherwise ``allowed_signers`` must have signed them.
    """

    unsigned: bool = False


class RecordSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frames kept for retraining; see `edge_agent.captures.recorder`.

    Attributes:
        per_hour: frames kept in an hour at most, of all cameras together.
        random_every_s: seconds between frames kept for no reason, so that the images stay representative.
        max_mb: megabytes the captures may take; the oldest of the most frequent kind go first.
        min_free_mb: megabytes to be left free on the disk whatever ``max_mb`` says.
    """

    per_hour: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    random_every_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 3600.0
    max_mb: Annotated[float, msgspec.Meta(gt=0)] = 1000.0
    min_free_mb: Annotated[float, msgspec.Meta(ge=0)] = 500.0


class PageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The live page, and Prometheus' metrics beside it; needs the extra ``review``.

    Attributes:
        host, port: where it listens. Anyone who reaches it sees the cameras.
    """

    host: Host = "127.0.0.1"
    port: Port = 8080


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in agent.yaml.

    Attributes:
        device: this device's name in topics.
        bundle: the model to run, relative to agent.yaml; the one installed on this device when left out.
        allowed_signers: OpenSSH file of who may have signed the bundle; without it, nobody need have.
        state: directory of what must outlive the agent, relative to agent.yaml.
        cameras: by name.
        threads: inference threads; one per core up to four when left out.
        delegate: shared library of an external delegate, such as Coral's ``libedgetpu.so.1``.
        install: which models may come over MQTT.
        record: keep frames for retraining; ``{}`` is enough.
        page: serve a live page and metrics; ``{}`` is enough.
        health_every_s: seconds between health messages.
        log: one line of text each, or one JSON object a line.
    """

    device: Slug
    cameras: Annotated[dict[Slug, CameraSettings], msgspec.Meta(min_length=1)]
    mqtt: MqttSettings = MqttSettings()
    decision: DecisionSettings = DecisionSettings()
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    bundle: str | None = None
    allowed_signers: str | None = None
    state: str = "/var/lib/edgeloop"
    delegate: str | None = None
    install: InstallSettings = InstallSettings()
    record: RecordSettings | None = None
    page: PageSettings | None = None
    health_every_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    log: Literal["text", "json"] = "text"


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Read agent.yaml; relative paths in it become relative to its directory.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    return anchored(
        settings_of(read_yaml(path, hint="write one, docs/agent.md shows how"), path), path.resolve().parent
    )


def settings_of(document: Any, source: object) -> Settings:
    """Settings from a parsed agent.yaml, paths as they stand there.

    Args:
        document: mappings, lists and scalars.
        source: where it came from, for the message.

    Raises:
        ConfigError: with every problem found.
    """
    settings = checked(document, Settings, source)
    problems = list(_contradictions(settings))
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return settings


def mqtt_password(settings: MqttSettings) -> str | None:
    """The broker password: from the file, else from the environment. Never logged.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    if settings.password_file is None:
        return os.environ.get("EDGELOOP_MQTT_PASSWORD")
    try:
        with open(settings.password_file, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                log.warning(
                    "%s: every user of this device can read the MQTT password; chmod 640 it", settings.password_file
                )
            password = file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{settings.password_file}: the MQTT password cannot be read: {error}") from error
    if not password:
        raise ConfigError(f"{settings.password_file}: the MQTT password is empty; write it on the first line")
    return password


def _contradictions(settings: Settings) -> Iterator[str]:
    decision = settings.decision
    if decision.enter is not None and decision.leave is not None and decision.leave > decision.enter:
        yield f"decision.leave ({decision.leave}) must not be above decision.enter ({decision.enter})"
    if settings.mqtt.password_file is not None and settings.mqtt.username is None:
        yield "mqtt.password_file is given, but no mqtt.username"
    if settings.mqtt.tls is not None and settings.mqtt.tls.key and not settings.mqtt.tls.certificate:
        yield "mqtt.tls.key is given, but no mqtt.tls.certificate"
    for name, camera in settings.cameras.items():
        left, top, right, bottom = camera.region
        if left >= right or top >= bottom:
            yield f"cameras.{name}.region: left, top, right, bottom {list(camera.region)} hold no image between them"
    for label, of_class in decision.classes.items():
        if of_class.enter is not None and of_class.leave is not None and of_class.leave > of_class.enter:
            yield f"decision.classes.{label}: leave ({of_class.leave}) must not be above enter ({of_class.enter})"


def anchored(settings: Settings, folder: Path) -> Settings:
    """Paths relative to agent.yaml made absolute; camera sources only where such a file exists."""
    cameras = {
        name: msgspec.structs.replace(camera, source=str(folder / camera.source))
        if isinstance(camera.source, str) and (folder / camera.source).exists()
        else camera
        for name, camera in settings.cameras.items()
    }
    password_file = settings.mqtt.password_file
    tls = settings.mqtt.tls and TlsSettings(
        **{key: path and str(folder / path) for key, path in msgspec.structs.asdict(settings.mqtt.tls).items()}
    )
    mqtt = msgspec.structs.replace(settings.mqtt, password_file=password_file and str(folder / password_file), tls=tls)
    signers = settings.allowed_signers
    return msgspec.structs.replace(
        settings,
        bundle=settings.bundle and str(folder / settings.bundle),
        cameras=cameras,
        mqtt=mqtt,
        allowed_signers=signers and str(folder / signers),
        state=str(folder / settings.state),
    )
