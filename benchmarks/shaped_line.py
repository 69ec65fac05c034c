"""A line between a node and a coordinator that is slow, long, cut, or silent; its own process.

Bytes wait for the line as packets do: all connections share its rate, one way each, and what
entered arrives after its delay. While the line is silent, what is under way waits, the first packet
of a new connection is dropped, and who hung up meanwhile is not missed before the other side sends
something.

    python benchmarks/shaped_line.py 127.0.0.1:7443 12500000 12500000 0.05

prints its own port and then answers each line of its input, `cut`, `blackhole`, `mend` or `passed`,
with one line.
"""

import asyncio
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_HOST = "127.0.0.1"
_CHUNK_BYTES = 2**14
_SOCKET_BYTES = 2**18
"""What a peer may hand over ahead of the line, as to a router's queue."""
_QUEUE_CHUNKS = 8
_LATE_SECONDS = 0.005
"""How late a sleep may end without costing capacity."""
_BACKLOG = 128
_ESTABLISHED = 1


class ShapedLine:
    """A line to a listening `target`; peers dial `address`. A context manager."""

    def __init__(
        self,
        target: str,
        *,
        up_bytes_per_second: float = 1e9,
        down_bytes_per_second: float = 1e9,
        one_way_seconds: float = 0.0,
    ) -> None:
        """Start the process.

        Args:
            target: host:port.
            up_bytes_per_second: Towards the target, shared by all connections.
            down_bytes_per_second: The same from it.
            one_way_seconds: From when a byte has entered the line until it arrives.
        """
        figures = (up_bytes_per_second, down_bytes_per_second, one_way_seconds)
        self._process = subprocess.Popen(
            [sys.executable, __file__, target, *map(str, figures)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.address = f"{_HOST}:{self._answer()}"

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._ask("cut")

    def blackhole(self) -> None:
        """Keep all connections, and let nothing pass."""
        self._ask("blackhole")

    def mend(self) -> None:
        """Let everything pass again."""
        self._ask("mend")

    def passed(self) -> tuple[int, int]:
        """Return how many bytes entered the line towards the target, and from it."""
        up, down = self._ask("passed").split()
        return int(up), int(down)

    def _ask(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, "the line's process has ended"
        return answer

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        self._process.terminate()
        self._process.communicate()


@dataclass(kw_only=True)
class Outage:
    """A slow line that breaks once, in the middle of a transfer, and is mended after a while."""

    line: ShapedLine
    is_upload: bool
    """Which way the transfer goes: towards the target, or from it."""
    is_silent: bool
    """Whether nobody is told; else its connections are closed and new ones refused."""
    breaks_at_bytes: float
    seconds: float
    broke_at: float = 0.0
    mended_at: float = 0.0
    stood_at_bytes: int = 0
    """What of the transfer had passed when it was mended."""

    def passed(self) -> int:
        """Return how many bytes of the transfer have entered the line."""
        return self.line.passed()[0 if self.is_upload else 1]

    def look(self) -> None:
        """Break the line or mend it when it is time."""
        now = time.monotonic()
        if not self.broke_at:
            if self.passed() > self.breaks_at_bytes:
                self.broke_at = now
                (self.line.blackhole if self.is_silent else self.line.cut)()
        elif not self.mended_at and now > self.broke_at + self.seconds:
            self.stood_at_bytes = self.passed()
            self.line.mend()
            self.mended_at = now


def slow_line(
    target: str, *, is_upload: bool, bytes_per_second: float, one_way_seconds: float
) -> ShapedLine:
    """Return a line that is slow towards `target`, or else from it."""
    slow = "up_bytes_per_second" if is_upload else "down_bytes_per_second"
    return ShapedLine(target, one_way_seconds=one_way_seconds, **{slow: bytes_per_second})


class _Way:
    """One direction, shared by all connections."""

    def __init__(self, bytes_per_second: float, one_way_seconds: float) -> None:
        self._rate = bytes_per_second
        self.delay = one_way_seconds
        self._free_at = 0.0
        self.queue_chunks = _QUEUE_CHUNKS + int(bytes_per_second * one_way_seconds / _CHUNK_BYTES)
        self.passed = 0

    async def carry(self, size: int) -> float:
        """Wait until `size` bytes have entered; return when they will have arrived."""
        now = time.monotonic()
        entered = self._free_at = max(now - _LATE_SECONDS, self._free_at) + size / self._rate
        self.passed += size
        await asyncio.sleep(entered - now)
        return max(now, entered) + self.delay


class _Connection:
    """A peer's socket and the one to the target."""

    def __init__(self, line: "_Line", near: socket.socket, far: socket.socket) -> None:
        self._line = line
        self._near, self._far = near, far
        self._tasks: list[asyncio.Task[None]] = []
        for source, sink, way in ((near, far, line.up), (far, near, line.down)):
            chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(way.queue_chunks)
            self._tasks.append(asyncio.create_task(self._take(source, way, chunks)))
            self._tasks.append(asyncio.create_task(self._deliver(sink, chunks)))

    async def _take(
        self, source: socket.socket, way: _Way, chunks: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"-"
        while data:
            await self._line.is_open.wait()
            data = await _received(source)
            await self._line.is_open.wait()
            await chunks.put((await way.carry(len(data)), data))

    async def _deliver(
        self, sink: socket.socket, chunks: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"-"
        with suppress(OSError):
            while data:
                arrives, data = await chunks.get()
                await asyncio.sleep(arrives - time.monotonic())
                await self._line.is_open.wait()
                await asyncio.get_running_loop().sock_sendall(sink, data)
        self.reset()

    def forget_who_left(self) -> None:
        """Make the line silent for good if a side hung up unheard, until the other one speaks."""
        left = [s for s in (self._near, self._far) if _state(s) != _ESTABLISHED]
        stayed = [s for s in (self._near, self._far) if s not in left]
        if left:
            self._end_tasks()
            self._tasks = [asyncio.create_task(self._reset_when_heard(s)) for s in stayed]
        if not stayed:
            self.reset()

    async def _reset_when_heard(self, stayed: socket.socket) -> None:
        await _received(stayed)
        self.reset()

    def reset(self) -> None:
        """Close both sockets at once."""
        self._end_tasks()
        for sock in (self._near, self._far):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self._line.connections.discard(self)

    def _end_tasks(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


class _Line:
    """The line, in its process."""

    def __init__(self, target: str, up: _Way, down: _Way) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self.up, self.down = up, down
        self.is_open = asyncio.Event()
        self.connections: set[_Connection] = set()
        self._listener = _listener((_HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._stopper: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = self._begin_to_accept()

    def _begin_to_accept(self) -> asyncio.Task[None]:
        self.is_open.set()
        return asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _address = await loop.sock_accept(self._listener)
            task = asyncio.create_task(self._connect(near))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, near: socket.socket) -> None:
        far = _socket()
        try:
            await asyncio.sleep(self.up.delay + self.down.delay)  # of the first handshake
            await asyncio.get_running_loop().sock_connect(far, self._target)
        except OSError:
            near.close()
            far.close()
        else:
            self.connections.add(_Connection(self, near, far))

    def cut(self) -> None:
        self._accepting.cancel()
        self._listener.close()
        for connection in list(self.connections):
            connection.reset()

    def blackhole(self) -> None:
        self._accepting.cancel()
        self.is_open.clear()
        self._listener.listen(0)
        self._stopper = _socket()  # fills the queue of those to accept: the system drops the next
        with suppress(BlockingIOError):
            self._stopper.connect(self._listener.getsockname())

    def mend(self) -> None:
        for connection in list(self.connections):
            connection.forget_who_left()
        if self._stopper is not None:
            self._stopper.close()
            self._stopper = None
            self._listener.listen(_BACKLOG)
        elif self._accepting.cancelled() or self._accepting.cancelling():
            self._listener = _listener((_HOST, self.port))
        self._accepting = self._begin_to_accept()


def _socket() -> socket.socket:
    made = socket.socket()
    made.settimeout(0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _listener(address: tuple[str, int]) -> socket.socket:
    listener = _socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(_BACKLOG)
    return listener


def _state(sock: socket.socket) -> int:
    """Return the state of a TCP connection as the system knows it."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


async def _received(source: socket.socket) -> bytes:
    """Return what a peer sent; nothing if it hung up."""
    try:
        return await asyncio.get_running_loop().sock_recv(source, _CHUNK_BYTES)
    except OSError:
        return b""


async def _serve(target: str, up: float, down: float, one_way_seconds: float) -> None:
    line = _Line(target, _Way(up, one_way_seconds), _Way(down, one_way_seconds))
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(line.port, flush=True)
    while command := (await commands.readline()).decode().strip():
        match command:
            case "cut":
                line.cut()
            case "blackhole":
                line.blackhole()
            case "mend":
                line.mend()
        print(line.up.passed, line.down.passed, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], *map(float, sys.argv[2:])))
