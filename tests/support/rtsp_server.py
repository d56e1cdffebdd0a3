"""An RTSP camera: `/usr/bin/python3 rtsp_server.py PORT IMAGE [USER:PASSWORD [FRAMES]]`, until killed.

GStreamer's server shows an image as H.264, with sound and with a key frame every FRAMES frames, as many network cameras
do. The first client comes just after a key frame. It runs on the Python that Debian's python3-gi is for, and prints its
port once it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

LAUNCH = """
( multifilesrc location="{image}" loop=true caps="image/png,framerate=25/1" ! pngdec ! videoconvert
  ! video/x-raw,format=I420 ! identity sync=true ! x264enc tune=zerolatency key-int-max={frames} bitrate=4000
  ! video/x-h264,stream-format=avc ! identity name=coded ! rtph264pay name=pay0 pt=96
  audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! identity name=sound
  ! rtppcmapay name=pay1 pt=8 )
"""


def join_late(_factory: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
    """Drop the first key frame; and refuse to seek, because the server would seek back to it."""

    def drop(pad: Gst.Pad, probe: Gst.PadProbeInfo) -> Gst.PadProbeReturn:
        pad.remove_probe(probe.id)
        return Gst.PadProbeReturn.DROP

    def refuse(_pad: Gst.Pad, probe: Gst.PadProbeInfo) -> Gst.PadProbeReturn:
        query = probe.get_query()
        if query.type != Gst.QueryType.SEEKING:
            return Gst.PadProbeReturn.OK
        return Gst.PadProbeReturn.DROP  # as an answer could not be written: PyGObject holds a second reference

    pads = [media.get_element().get_by_name(name).get_static_pad("src") for name in ("coded", "sound")]
    pads[0].add_probe(Gst.PadProbeType.BUFFER, drop)
    for pad in pads:
        pad.add_probe(Gst.PadProbeType.QUERY_UPSTREAM, refuse)


def main(port: str, image: str, login: str = "", frames: str = "25") -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory.new()
    factory.set_launch(LAUNCH.format(image=image, frames=frames))
    factory.set_shared(True)
    factory.connect("media-configure", join_late)
    if login:
        user, password = login.split(":")
        guard = GstRtspServer.RTSPAuth.new()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "viewer")
        guard.add_digest(user, password, token)
        guard.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        server.set_auth(guard)
        factory.add_role_from_structure(
            Gst.Structure.from_string("viewer,media.factory.access=true,media.factory.construct=true")[0]
        )
    server.get_mount_points().add_factory("/door", factory)
    server.attach(None)
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main(*sys.argv[1:])
