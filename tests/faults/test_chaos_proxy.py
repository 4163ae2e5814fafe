"""The bad link is as bad as it says, and the same seed breaks at the same moments."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from chaos_proxy import ChaosProxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()
    server.close()


def dial(proxy: ChaosProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=5)


def test_a_good_line_passes_everything(echo: tuple[str, int]) -> None:
    with ChaosProxy(echo, seed=1) as proxy, dial(proxy) as end:
        end.sendall(b"x" * 1000)
        got = b""
        while len(got) < 1000:
            got += end.recv(1000)
        assert got == b"x" * 1000
        assert (proxy.bytes_up, proxy.bytes_down) == (1000, 1000)


def test_connections_die_young_on_average(echo: tuple[str, int]) -> None:
    lives = []
    with ChaosProxy(echo, seed=1, mean_life_s=0.02) as proxy:
        for _ in range(20):
            began = time.monotonic()
            with dial(proxy) as end:
                try:
                    while end.recv(1):
                        pass
                except ConnectionError:
                    pass
            lives.append(time.monotonic() - began)
        assert proxy.cuts == 20
    assert 0.005 < sum(lives) / 20 < 0.08


def test_a_black_hole_neither_answers_nor_closes(echo: tuple[str, int]) -> None:
    with ChaosProxy(echo, seed=1) as proxy, dial(proxy) as end:
        proxy.black_hole = True
        end.sendall(b"hello")
        end.settimeout(0.3)
        with pytest.raises(TimeoutError):
            end.recv(1)
        proxy.black_hole = False
        end.settimeout(5)
        assert end.recv(5) == b"hello"


def test_a_slow_line_takes_the_time_that_its_rate_says(echo: tuple[str, int]) -> None:
    with ChaosProxy(echo, seed=1, bits_per_s=160_000) as proxy, dial(proxy) as end:
        began = time.monotonic()
        end.sendall(b"x" * 10_000)
        got = 0
        while got < 10_000:
            got += len(end.recv(65536))
        assert 0.45 < time.monotonic() - began < 0.9  # 0.5 s at 20 kB/s, both ways at once


def test_a_refusing_end_closes_at_once(echo: tuple[str, int]) -> None:
    with ChaosProxy(echo, seed=1) as proxy:
        proxy.refuse = True
        with dial(proxy) as end, contextlib.suppress(ConnectionError):
            assert end.recv(1) == b""
