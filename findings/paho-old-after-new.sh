#!/bin/sh
# paho-mqtt sends its unacknowledged messages again after a reconnect, but behind what on_connect publishes: the newest
# retained state arrives first, and older ones replace it.
#
# Guess: to publish the present state (retained, QoS 1) in on_connect is the way to make the broker's state right after an
# outage; what was in flight before is older, so it comes first.
# Seen (paho-mqtt 2.2.0, Python 3.11 on Linux, 2026-12-01): the state "now", published in on_connect of the second
# connection, is followed by "old 0", "old 1" and "old 2" of the first one. Whoever subscribes later gets "old 2", until
# the next change.
# Remedies: a new client for each connection, with the resending in one's own hands; or the present published only once
# everything older has been acknowledged.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q --disable-pip-version-check paho-mqtt==2.2.0
cat >"$work/try.py" <<'PY'
import socket
import struct
import threading

import paho.mqtt.client as paho

ARRIVED = {1: [], 2: []}
done = threading.Event()


def packets(connection):
    """Yield (first byte, body) of the packets that a client sends; all of them are short."""
    received = b""
    while data := connection.recv(4096):
        received += data
        while len(received) >= 2 and len(received) >= 2 + received[1]:
            yield received[0], received[2 : 2 + received[1]]
            received = received[2 + received[1] :]


def broker(listener):
    """Accept two connections. Acknowledge nothing on the first one, and close it after three messages."""
    for number in (1, 2):
        connection, _ = listener.accept()
        for kind, body in packets(connection):
            if kind >> 4 == 1:
                connection.sendall(b"\x20\x02\x00\x00")  # CONNACK
            elif kind >> 4 == 3:
                length = struct.unpack(">H", body[:2])[0]
                ARRIVED[number].append(body[4 + length :].decode())
                if number == 2:
                    connection.sendall(b"\x40\x02" + body[2 + length : 4 + length])  # PUBACK
                if len(ARRIVED[number]) == (3 if number == 1 else 4):
                    break
        if number == 1:
            connection.close()
    done.set()


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=broker, args=(listener,), daemon=True).start()
connections = []


def on_connect(client, *_):
    connections.append(1)
    if len(connections) == 2:
        client.publish("state", "now", qos=1, retain=True)
    else:
        for number in range(3):
            client.publish("state", f"old {number}", qos=1, retain=True)


client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="device", clean_session=False)
client.on_connect = on_connect
client.reconnect_delay_set(1, 1)
client.connect("127.0.0.1", listener.getsockname()[1])
client.loop_start()
done.wait(30)
client.loop_stop()
print("first connection:", ", ".join(ARRIVED[1]))
print("second connection:", ", ".join(ARRIVED[2]))
PY
"$work/env/bin/python" "$work/try.py" | tee "$work/out"
grep -qx "second connection: now, old 0, old 1, old 2" "$work/out"
