"""What the raylet starts in place of a worker: asks the fork server for one, and where none answers becomes it.

A script of its own, for an interpreter that loads nothing else:
python -I -S fork_client.py SOCKET PYTHON SETUP SCRIPT WORDS...        all after SOCKET as Ray wrote it
"""

import json
import os
import socket
import sys

# Of SETUP, which gives a worker an environment of its own where one was asked for, and then starts Python anew.
_LANGUAGE = "--language=PYTHON"
_ENVIRONMENT = "--serialized-runtime-env-context"

NO_JOB = "ffffffff"  # the RAY_JOB_ID of a worker that is started before there is work for it


def main(path: str, command: list[str]) -> None:
    plain = not any(word.startswith(_ENVIRONMENT) for word in command)
    if plain and os.environ.get("RAY_JOB_ID") == NO_JOB:
        script = [word for word in command[2:] if word != _LANGUAGE]
        request = {"script": script, "environment": dict(os.environ), "niceness": os.nice(0)}
        if _is_forked(path, json.dumps(request).encode()):
            return
    os.execv(command[0], command)


def _is_forked(path: str, request: bytes) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            socket.send_fds(server, [len(request).to_bytes(4, "big")], [1, 2])
            server.sendall(request)
            return server.recv(1) != b""
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
