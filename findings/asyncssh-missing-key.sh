#!/bin/sh
# asyncssh stops at a key that ssh_config names and that is not there, and at a damaged line in known_hosts; OpenSSH goes
# on with the other keys and the other lines.
#
# Guess: a library that reads ~/.ssh/config treats it as ssh(1) does: `IdentityFile` of a key that this computer does not
# have, common in a configuration shared between computers, is skipped.
# Seen (asyncssh 2.24.1, Python 3.11 on Linux, 2026-12-01): with a second IdentityFile that is right, the connection fails
# before anything is sent: FileNotFoundError. With a line of known_hosts that is cut off after the name: ValueError.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip install -q --disable-pip-version-check asyncssh==2.24.1 cryptography==50.0.2
cat >"$work/try.py" <<'PY'
import asyncio
import sys
from pathlib import Path

import asyncssh

work = Path(sys.argv[1])
key, host_key = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
key.write_private_key(work / "id")
(work / "id").chmod(0o600)
(work / "authorized_keys").write_text(key.export_public_key().decode())


async def attempt(port, *lines):
    (work / "config").write_text("\n".join(["Host device", "  HostName 127.0.0.1", f"  Port {port}", *lines]) + "\n")
    try:
        async with asyncssh.connect("device", config=[str(work / "config")], username="me"):
            return "connected"
    except Exception as error:
        return type(error).__name__


async def main():
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[host_key], authorized_client_keys=str(work / "authorized_keys"),
        process_factory=lambda process: process.exit(0),
    )
    port = server.get_port()
    known = f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}"
    (work / "known").write_text(known)
    (work / "damaged").write_text("other\n" + known)
    right, missing = f"  IdentityFile {work / 'id'}", f"  IdentityFile {work / 'missing'}"
    hosts, damaged = f"  UserKnownHostsFile {work / 'known'}", f"  UserKnownHostsFile {work / 'damaged'}"
    print("all is right:", await attempt(port, right, hosts))
    print("a key is missing:", await attempt(port, missing, right, hosts))
    print("a line is damaged:", await attempt(port, right, damaged))
    server.close()


asyncio.run(main())
PY
"$work/env/bin/python" "$work/try.py" "$work" | tee "$work/out"
grep -qx "all is right: connected" "$work/out"
grep -qx "a key is missing: FileNotFoundError" "$work/out"
grep -qE "^a line is damaged: ValueError$" "$work/out"
