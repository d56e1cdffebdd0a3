"""An RTSP camera: `/usr/bin/python3 rtsp_server.py PORT IMAGE [USER:PASSWORD]`, until killed.

GStreamer's server shows an image as H.264, with sound, as many network cameras do. It runs on the Python that Debian's
python3-gi is for. Prints its port once it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

LAUNCH = """
( multifilesrc location="{image}" loop=true caps="image/png,framerate=25/1" ! pngdec ! videoconvert
  ! video/x-raw,format=I420 ! identity sync=true ! x264enc tune=zerolatency key-int-max=25 bitrate=4000
  ! rtph264pay name=pay0 pt=96
  audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay name=pay1 pt=8 )
"""


def main(port: str, image: str, login: str = "") -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory.new()
    factory.set_launch(LAUNCH.format(image=image))
    factory.set_shared(True)
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
