"""Typed settings of `agent.yaml`. docs/reference/agent-yaml.md describes every key.

An unknown key is an error, with a suggestion. All problems are reported at once, because devices are configured
remotely and every further attempt takes time.
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
from .web.access import is_loopback
from .yaml_files import checked, read_yaml

log = logging.getLogger(__name__)

_SHORTEST_PASSWORD = 8
DEFAULT_PATH = Path("/etc/edgeloop/agent.yaml")

Slug = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z", description="letters, digits, - and _")
]
# Names that the resolver accepts without raising: labels of 1 to 63 characters, or an IPv6 address.
_HOST = r"^[A-Za-z0-9_:-]{1,63}(?:\.[A-Za-z0-9_:-]{1,63})*\.?\Z"
Host = Annotated[str, msgspec.Meta(pattern=_HOST, max_length=253, description="a host name or an IP address")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
_Pixels = Annotated[int, msgspec.Meta(ge=16, le=16384)]
# One or more topic levels, without wildcards, empty levels or the broker's own topics ($SYS).
TopicPrefix = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[^+#/$\x00-\x1f][^+#/\x00-\x1f]*(?:/[^+#/\x00-\x1f]+)*\Z",
        max_length=100,
        description="levels of a topic, such as edgeloop/garden, without + and #",
    ),
]


class MotionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Motion gate: classify a frame only when the image changed; see `edge_agent.cameras.motion`.

    Attributes:
        threshold: Grey levels, of 255, by which part of the image must differ from the last classified frame.
        every_s: Seconds after which a frame is classified even if nothing changed.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0.5, le=255)] = 6.0
    every_s: Annotated[float, msgspec.Meta(ge=0.1, le=86400)] = 10.0


class CameraTlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Certificates to accept from a camera with an ``https://`` address, instead of those that the system trusts.

    Attributes:
        ca: PEM file of the certificate authorities, relative to agent.yaml.
        fingerprint: SHA-256 fingerprint of the camera's own certificate; its name and dates are then not checked.
    """

    ca: str | None = None
    fingerprint: (
        Annotated[
            str,
            msgspec.Meta(
                pattern=r"^(?:[0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}\Z",
                description="64 hexadecimal digits, as openssl prints",
            ),
        ]
        | None
    ) = None


class CameraSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One camera.

    Attributes:
        source: A device number (``0``), a device (``/dev/v4l/by-id/...``, ``/dev/video0``), ``picamera`` or
            ``picamera:1``, an ``rtsp://`` or ``http://`` address, a video file or a folder of images. Paths are
            relative to agent.yaml.
        loop: Whether to restart a video file or a folder at its end.
        size: Width and height to request from the camera, in pixels; the camera's default if omitted.
        fps: Frame rate to request from the camera, or at which to play a folder of images.
        region: Part of the image to classify: left, top, right, bottom, each a fraction of width or height.
        timeout_s: Seconds without a frame after which the camera counts as lost.
        frozen_s: Seconds of exactly the same image after which the camera counts as frozen; 0 disables the check.
        motion: Classify only when the image changed; ``{}`` enables it with the defaults.
        tls: Certificates to accept from an ``https://`` camera.
    """

    source: int | str
    loop: bool = False
    size: tuple[_Pixels, _Pixels] | None = None
    fps: Annotated[float, msgspec.Meta(ge=0.01, le=1000)] | None = None
    region: tuple[Fraction, Fraction, Fraction, Fraction] = (0.0, 0.0, 1.0, 1.0)
    timeout_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 5.0
    frozen_s: Seconds = 30.0
    motion: MotionSettings | None = None
    tls: CameraTlsSettings | None = None


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An encrypted connection. All files are PEM; paths are relative to agent.yaml.

    Attributes:
        ca: File of trusted certificate authorities for the broker's certificate; the system's if omitted.
        certificate, key: Client certificate of this device, for brokers that require one, and its key without a
            passphrase.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The connection to the broker.

    Attributes:
        host, port: Address of the broker.
        protocol: MQTT version. With ``auto``, it is 5, or 3.1.1 for brokers that do not answer MQTT 5.
        username: Account at the broker.
        password_file: File whose first line is the password, relative to agent.yaml. If omitted, the environment
            variable EDGELOOP_MQTT_PASSWORD is used.
        prefix: First level of every topic.
        results: Whether to publish the result of every inference as well.
        keepalive_s: MQTT keepalive in seconds. The broker publishes ``offline`` for this device after 1.5 times this
            time without contact.
        event_expiry_s: Seconds after which an undelivered event is dropped.
        tls: Encrypt the connection; ``{}`` is enough if the system trusts the broker's certificate authority.
        commands: Whether to accept commands (snapshot, set, install, activate, rollback, bench).
        discovery: Home Assistant's discovery prefix, usually ``homeassistant``; if omitted, the device is not
            announced.
    """

    host: Host = "localhost"
    port: Port = 1883
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
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
    """Decision settings of one label. An omitted key takes the value from `DecisionSettings`."""

    enter: Fraction | None = None
    leave: Fraction | None = None
    min_time_s: Seconds | None = None


class DecisionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How scores become a label; see `edge_agent.inference.decision`.

    Attributes:
        smoothing_s: Time constant of the moving average of the scores, in seconds; 0 disables smoothing.
        enter: Smoothed score that a label must reach; the bundle's value if omitted.
        leave: Smoothed score below which a label is given up; the bundle's value if omitted.
        min_time_s: Seconds a new label must hold before it is decided.
        classes: Settings of single labels, by label.
    """

    smoothing_s: Seconds = 0.5
    enter: Fraction | None = None
    leave: Fraction | None = None
    min_time_s: Seconds = 0.3
    classes: dict[str, ClassSettings] = {}


class InstallSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which models may be installed over MQTT.

    Attributes:
        unsigned: Whether to accept unsigned bundles. Otherwise, a bundle needs a signature that ``allowed_signers``
            accepts.
        hosts: Names or addresses of the servers that bundles may come from, redirects included. If there are none, a
            command may name any server, but that may redirect only to itself.
    """

    unsigned: bool = False
    hosts: tuple[Host, ...] = ()


class RecordSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frames kept for retraining; see `edge_agent.captures.recorder`.

    Attributes:
        per_hour: Maximum number of frames kept per hour, for all cameras together.
        random_every_s: Average seconds between randomly sampled frames, per camera. They keep the captures
            representative.
        max_mb: Maximum size of all captures in megabytes. The oldest capture of the most frequent kind is deleted
            first.
        min_free_mb: Megabytes to leave free on the disk, even if ``max_mb`` is not reached.
    """

    per_hour: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    random_every_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 3600.0
    max_mb: Annotated[float, msgspec.Meta(gt=0)] = 1000.0
    min_free_mb: Annotated[float, msgspec.Meta(ge=0)] = 500.0


class DashboardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The dashboard and the Prometheus metrics; needs the extra ``review``.

    Attributes:
        host, port: Address to listen on.
        password_file: File with the password, relative to agent.yaml. Needed for any address but loopback.
        hosts: Names of this device that browsers may use, such as that of a reverse proxy. Its host name with and
            without ``.local``, and its IP addresses, need not be listed.
    """

    host: Host = "127.0.0.1"
    port: Port = 8080
    password_file: str | None = None
    hosts: tuple[Host, ...] = ()


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings in agent.yaml.

    Attributes:
        device: Name of this device in topics.
        bundle: Bundle to run, relative to agent.yaml; the model installed on this device if omitted.
        allowed_signers: File of allowed signers in OpenSSH's format; if omitted, unsigned bundles are accepted.
        state: Directory for data that must survive a restart of the agent, relative to agent.yaml.
        cameras: Cameras by name.
        threads: Number of inference threads; one per core, at most four, if omitted.
        delegate: Shared library of an external delegate, such as Coral's ``libedgetpu.so.1``.
        install: Which models may be installed over MQTT.
        record: Keep frames for retraining; ``{}`` enables it with the defaults.
        dashboard: Serve the dashboard and metrics; ``{}`` enables it with the defaults.
        health_every_s: Seconds between health messages.
        log: Format of log entries: a line of text or a JSON object per line.
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
    dashboard: DashboardSettings | None = None
    health_every_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    log: Literal["text", "json"] = "text"


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Read agent.yaml, and resolve its relative paths against its directory.

    Raises:
        ConfigError: The file cannot be used; the message lists every problem found.
    """
    path = Path(path)
    return anchored(
        settings_of(read_yaml(path, hint="write one; see docs/reference/agent-yaml.md"), path), path.resolve().parent
    )


def settings_of(document: Any, source: object) -> Settings:
    """Settings from a parsed agent.yaml, with paths unchanged.

    Args:
        document: Mappings, lists and scalars.
        source: Name of the file, for error messages.

    Raises:
        ConfigError: The settings cannot be used; the message lists every problem found.
    """
    settings = checked(_with_current_names(document, source), Settings, source)
    problems = list(_contradictions(settings))
    if problems:
        raise ConfigError(f"{source}: {'; '.join(problems)}")
    return settings


def mqtt_password(settings: MqttSettings) -> str | None:
    """The broker password, from the file or else from the environment. It is never logged.

    Raises:
        ConfigError: The file cannot be read or is empty.
    """
    if settings.password_file is None:
        return os.environ.get("EDGELOOP_MQTT_PASSWORD")
    return _password(settings.password_file, "MQTT password")


def dashboard_password(settings: DashboardSettings) -> str | None:
    """The dashboard's password, or None if it needs none. It is never logged.

    Raises:
        ConfigError: The file cannot be read, or its password has less than 8 characters.
    """
    if settings.password_file is None:
        return None
    password = _password(settings.password_file, "dashboard password")
    if len(password) < _SHORTEST_PASSWORD:
        raise ConfigError(
            f"{settings.password_file}: the dashboard password has less than {_SHORTEST_PASSWORD} characters"
        )
    return password


def _password(file: str, what: str) -> str:
    try:
        with open(file, encoding="utf-8") as opened:
            if os.fstat(opened.fileno()).st_mode & stat.S_IROTH:
                log.warning("%s: every user of this device can read the %s; chmod 640 it", file, what)
            password = opened.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the {what} cannot be read: {error}") from error
    if not password:
        raise ConfigError(f"{file}: the {what} is empty; write it on the first line")
    return password


def _with_current_names(document: Any, source: object) -> Any:
    """Replace keys of earlier versions: ``dashboard`` was called ``page``."""
    if not isinstance(document, dict) or "page" not in document:
        return document
    if "dashboard" in document:
        raise ConfigError(f"{source}: found both dashboard and page, its former name; remove page")
    return {"dashboard" if key == "page" else key: value for key, value in document.items()}


def _contradictions(settings: Settings) -> Iterator[str]:
    decision = settings.decision
    if decision.enter is not None and decision.leave is not None and decision.leave > decision.enter:
        yield f"decision.leave ({decision.leave}) must not be above decision.enter ({decision.enter})"
    if settings.mqtt.password_file is not None and settings.mqtt.username is None:
        yield "mqtt.password_file is given, but no mqtt.username; add it"
    if settings.mqtt.tls is not None and settings.mqtt.tls.key and not settings.mqtt.tls.certificate:
        yield "mqtt.tls.key is given, but no mqtt.tls.certificate; add it"
    dashboard = settings.dashboard
    if dashboard is not None and dashboard.password_file is None and not is_loopback(dashboard.host):
        yield (
            f"dashboard.host: {dashboard.host} shows the cameras to everybody in the network; write a password into a "
            "file, and name it as dashboard.password_file"
        )
    for name, camera in settings.cameras.items():
        yield from _camera_contradictions(f"cameras.{name}", camera)
    for label, rule in decision.classes.items():
        if rule.enter is not None and rule.leave is not None and rule.leave > rule.enter:
            yield f"decision.classes.{label}: leave ({rule.leave}) must not be above enter ({rule.enter})"


def _camera_contradictions(where: str, camera: CameraSettings) -> Iterator[str]:
    left, top, right, bottom = camera.region
    if left >= right or top >= bottom:
        yield f"{where}.region: left, top, right, bottom {list(camera.region)} enclose no part of the image"
    if camera.tls is not None and not str(camera.source).lower().startswith("https://"):
        yield f"{where}.tls is given, but its source is not an https:// address"
    if camera.tls is not None and (camera.tls.ca is None) == (camera.tls.fingerprint is None):
        yield f"{where}.tls: expected either ca or fingerprint"


def anchored(settings: Settings, folder: Path) -> Settings:
    """Make paths that are relative to ``folder`` absolute; a camera source only if that file exists."""
    cameras = {name: _anchored_camera(camera, folder) for name, camera in settings.cameras.items()}
    password_file = settings.mqtt.password_file
    tls = settings.mqtt.tls and TlsSettings(
        **{key: path and str(folder / path) for key, path in msgspec.structs.asdict(settings.mqtt.tls).items()}
    )
    mqtt = msgspec.structs.replace(settings.mqtt, password_file=password_file and str(folder / password_file), tls=tls)
    signers, dashboard = settings.allowed_signers, settings.dashboard
    if dashboard is not None and dashboard.password_file is not None:
        dashboard = msgspec.structs.replace(dashboard, password_file=str(folder / dashboard.password_file))
    return msgspec.structs.replace(
        settings,
        bundle=settings.bundle and str(folder / settings.bundle),
        cameras=cameras,
        mqtt=mqtt,
        allowed_signers=signers and str(folder / signers),
        state=str(folder / settings.state),
        dashboard=dashboard,
    )


def _anchored_camera(camera: CameraSettings, folder: Path) -> CameraSettings:
    if isinstance(camera.source, str) and (folder / camera.source).exists():
        camera = msgspec.structs.replace(camera, source=str(folder / camera.source))
    if camera.tls is not None and camera.tls.ca is not None:
        tls = msgspec.structs.replace(camera.tls, ca=str(folder / camera.tls.ca))
        camera = msgspec.structs.replace(camera, tls=tls)
    return camera
