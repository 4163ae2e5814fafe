"""A TCP proxy that behaves like a bad link: cuts, black holes, low rates; from a seed.

It does not start a process or import anything of the product, so it can stand between any two.
"""

import asyncio
import contextlib
import random
import socket
import threading
from types import TracebackType

__all__ = ["ChaosProxy"]

PIECE = 1024  # bytes; small, so that a cut falls anywhere and a low rate is smooth
SMALL_BUFFER = 4096  # of a rate-limited socket: buffers would hide the rate from the sender


class ChaosProxy:
    """Passes TCP connections on to ``target``, and breaks them.

    ``mean_life_s``: each connection is reset after an exponentially distributed time of this
    mean. ``bits_per_s``: one rate for each direction, shared by all connections, as on one line.
    ``refuse``: new connections are closed at once. ``black_hole``: nothing passes and nothing is
    closed, as behind a dead mobile link. All of them may be changed while it runs.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        seed: int,
        mean_life_s: float | None = None,
        bits_per_s: float | None = None,
    ) -> None:
        self.target = target
        self.mean_life_s = mean_life_s
        self.bits_per_s = bits_per_s
        self.refuse = False
        self.black_hole = False
        self.cuts = 0
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.host = "127.0.0.1"
        self.port = 0
        self._random = random.Random(seed)
        self._line_free_at = {True: 0.0, False: 0.0}  # upward, downward
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "ChaosProxy":
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the chaos proxy did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Reset every connection now."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener = socket.create_server((self.host, 0), backlog=64)
        if self.bits_per_s:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self.port = listener.getsockname()[1]
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=listener, limit=SMALL_BUFFER)
        )
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._cut_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _cut_all(self) -> None:
        for writer in tuple(self._writers):
            _reset(writer)
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(
                *self.target, limit=SMALL_BUFFER if self.bits_per_s else 65536
            )
        except OSError:
            _reset(writer)
            return
        pair = {writer, far_writer}
        self._writers |= pair
        if self.bits_per_s:
            for end in pair:
                end.transport.set_write_buffer_limits(high=SMALL_BUFFER)
                raw = end.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        death = asyncio.create_task(self._live_and_die(pair))
        await asyncio.gather(
            self._pump(reader, far_writer, upward=True),
            self._pump(far_reader, writer, upward=False),
        )
        death.cancel()
        self._writers -= pair

    async def _live_and_die(self, pair: set[asyncio.StreamWriter]) -> None:
        if self.mean_life_s is None:
            return
        await asyncio.sleep(self._random.expovariate(1 / self.mean_life_s))
        self.cuts += 1
        for writer in pair:
            _reset(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upward: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE if self.bits_per_s else 65536):
                while self.black_hole:
                    await asyncio.sleep(0.05)
                if self.bits_per_s:
                    await self._wait_for_the_line(len(data), upward)
                if upward:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def _wait_for_the_line(self, size: int, upward: bool) -> None:
        assert self.bits_per_s is not None
        now = self._loop.time()
        start = max(now, self._line_free_at[upward])
        self._line_free_at[upward] = start + size * 8 / self.bits_per_s
        await asyncio.sleep(self._line_free_at[upward] - now)


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.transport.abort()
