"""A TCP proxy that cuts connections after a random number of bytes, or is slow."""

import contextlib
import random
import socket
import struct
import threading
import time

_NO_LINGER = struct.pack("ii", 1, 0)


class CuttingProxy:
    """Forwards to `target` on loopback; each of the first `cuts` connections is cut somewhere.

    Where: after a number of bytes, both ways together, drawn from 1 to `most_bytes`;
    half of the cuts are resets, the others orderly ends in the middle of whatever is
    being sent. No direction of a connection is faster than `bytes_per_second`.
    """

    def __init__(
        self,
        target: str,
        cuts: int,
        most_bytes: int,
        seed: int = 0,
        bytes_per_second: float = float("inf"),
    ) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._random = random.Random(seed)
        self._most_bytes = most_bytes
        self.cuts_left = cuts
        self.bytes_per_second = bytes_per_second
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "CuttingProxy":
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            _Connection(self, device, server, self._draw())

    def _draw(self) -> int | None:
        if self.cuts_left <= 0:
            return None
        return self._random.randint(1, self._most_bytes)

    def cut(self, *sockets: socket.socket) -> None:
        self.cuts_left -= 1
        for end in sockets:
            if self._random.random() < 0.5:
                # closing it will be a reset
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


class _Connection:
    """One forwarded connection, with so many bytes to live."""

    def __init__(
        self,
        proxy: CuttingProxy,
        device: socket.socket,
        server: socket.socket,
        left: int | None,
    ) -> None:
        self._proxy = proxy
        self._left = left
        self._lock = threading.Lock()
        self._ended = False
        self._sockets = device, server
        for end in self._sockets:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start(device, server)
        self._start(server, device)

    def _start(self, source: socket.socket, sink: socket.socket) -> None:
        forward = threading.Thread(
            target=self._forward, args=(source, sink), daemon=True
        )
        forward.start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                allowed = self._take(len(data))
                time.sleep(allowed / self._proxy.bytes_per_second)
                sink.sendall(data[:allowed])
                if self._left == 0:
                    break
        self._end()

    def _take(self, wanted: int) -> int:
        """How many of the wanted bytes may still pass."""
        with self._lock:
            if self._left is None:
                return wanted
            allowed = min(wanted, self._left)
            self._left -= allowed
            return allowed

    def _end(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self._left == 0:
                self._proxy.cut(*self._sockets)
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
