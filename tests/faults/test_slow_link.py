"""A slow line carries what its rate says, in the kernel where that is allowed."""

import subprocess
import sys
import time

import pytest
from slow_link import SlowLink, why_no_namespaces

pytestmark = pytest.mark.slow

SINK = """
import socket
server = socket.create_server(("10.77.0.1", 9000)); print("ready", flush=True)
end, _ = server.accept(); got = 0
while data := end.recv(65536): got += len(data)
print(got, flush=True)
"""
SOURCE = """
import socket
end = socket.create_connection(("10.77.0.1", 9000)); end.sendall(b"x" * 64_000); end.close()
"""


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
def test_64_kilobytes_at_256_kilobits_take_two_seconds() -> None:
    with SlowLink(256_000) as link:
        python = [sys.executable, "-c"]
        with subprocess.Popen(
            [*link.at(link.near), *python, SINK], stdout=subprocess.PIPE, text=True
        ) as sink:
            assert sink.stdout is not None
            assert sink.stdout.readline() == "ready\n"
            began = time.monotonic()
            subprocess.run([*link.at(link.far), *python, SOURCE], check=True)
            assert sink.stdout.readline() == "64000\n"
        assert 1.9 < time.monotonic() - began < 2.8
