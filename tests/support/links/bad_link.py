"""A TCP proxy that does to a connection what the field does: cuts it, slows it, stops it."""

import asyncio
import contextlib
import random
import threading
from types import TracebackType
from typing import Self


class BadLink:
    """Listens on ``port`` and passes everything on to ``target``, both ways.

    ``mean_life_s``: connections are cut after a random time with this mean. ``rate``: bytes per
    second, in each direction. ``seed`` repeats the cuts.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        mean_life_s: float | None = None,
        rate: float | None = None,
        seed: int = 0,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.cuts = 0
        self._target = target
        self._mean_life_s = mean_life_s
        self._rate = rate
        self._random = random.Random(seed)
        self._is_open = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection; new ones are let through."""
        self._call(self._abort())

    def close(self) -> None:
        """Reset every connection and refuse new ones until `open`."""
        self._is_open = False
        self.cut()

    def open(self) -> None:
        self._is_open = True

    def _call(self, coroutine: "asyncio._CoroutineLike[None]") -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10.0)

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._serve, self.host, 0, limit=4096)
        self.port = server.sockets[0].getsockname()[1]

    async def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _end(self) -> None:
        await self._abort()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_open:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=4096)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        killer = asyncio.create_task(self._kill_later(pair))
        pipes = {
            asyncio.create_task(self._pipe(reader, far_writer, up=True)),
            asyncio.create_task(self._pipe(far_reader, writer, up=False)),
        }
        with contextlib.suppress(asyncio.CancelledError):  # the test is over
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.02)  # let the other direction say goodbye
        killer.cancel()
        for end in pair:
            end.close()
        for pipe in pipes:
            pipe.cancel()
        self._writers -= pair

    async def _kill_later(self, pair: set[asyncio.StreamWriter]) -> None:
        if self._mean_life_s is None:
            return
        await asyncio.sleep(self._random.expovariate(1 / self._mean_life_s))
        if self._mean_life_s is None:
            return
        self.cuts += 1
        for writer in pair:
            writer.transport.abort()

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2048):
                if up:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
                if self._rate is not None:
                    await asyncio.sleep(len(data) / self._rate)
                writer.write(data)
                await writer.drain()
