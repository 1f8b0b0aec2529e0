"""Notices the end of another host's process at once, and names it.

JAX's coordination service notices it after some missed heartbeats. It then
aborts this process, without naming the other one. Here each host holds a
connection to the first one, and the system closes the connections of a process
however it ends.
"""

import atexit
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from keras_mixer.engines.hosts import EXIT_CODE, WorkerLostError, lost_worker

_JOIN_SECONDS = 30
_BYE = b"bye"
# A host without power is lost after 30 s.
_KEEPALIVE = (("KEEPIDLE", 10), ("KEEPINTVL", 5), ("KEEPCNT", 4))


class Peers:
    """The other hosts of a run.

    When one of them ends before `part`, the process prints which one, and ends
    with EXIT_CODE. It cannot do less: the main thread may wait for the other
    host in a collective for ever.

    Args:
      index: Of this host; host 0 listens.
      count: Of hosts.
      broadcast: Returns on every host the int64 `[5]` that host 0 gives it.
    """

    def __init__(
        self,
        index: int,
        count: int,
        broadcast: Callable[[np.ndarray], np.ndarray],
    ):
        self._own = f"worker {index}"
        self._lock = threading.Lock()
        self._parted = False
        self._connections: dict[str, socket.socket] = {}
        server = None
        address = np.zeros([5], np.int64)
        if index == 0:
            server = socket.create_server(("", 0), backlog=count)
            ip = map(int, _own_address().split("."))
            address[:] = *ip, server.getsockname()[1]
        *numbers, port = broadcast(address).tolist()
        ip_of_first = ".".join(map(str, numbers))
        try:
            if server is not None:
                self._accept(server, count - 1)
            else:
                self._connect(ip_of_first, port, index)
        except OSError as error:
            print(
                f"Warning: no connection among the hosts by {ip_of_first}:"
                f"{port} ({error}). A host that ends is noticed late, and not "
                "named.",
                file=sys.stderr,
            )
        _delay_abort()
        atexit.register(self._exit)
        for name in self._connections:
            threading.Thread(
                target=self._listen, args=(name,), daemon=True
            ).start()

    def _accept(self, server: socket.socket, count: int) -> None:
        server.settimeout(_JOIN_SECONDS)
        with server:
            for _ in range(count):
                connection, (ip, _) = server.accept()
                connection.settimeout(_JOIN_SECONDS)
                other = int.from_bytes(connection.recv(4), "big")
                self._keep(f"worker {other} ({ip})", connection)

    def _connect(self, ip: str, port: int, index: int) -> None:
        connection = socket.create_connection((ip, port), _JOIN_SECONDS)
        connection.sendall(index.to_bytes(4, "big"))
        self._keep(f"worker 0 ({ip})", connection)

    def _keep(self, name: str, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            if number := getattr(socket, f"TCP_{option}", None):
                connection.setsockopt(socket.IPPROTO_TCP, number, value)
        self._connections[name] = connection

    def _listen(self, name: str) -> None:
        """Waits until a host ends, or the first one says which one has."""
        said = b""
        try:
            while part := self._connections[name].recv(256):
                said += part
        except OSError:
            pass
        if not said.endswith(_BYE):
            self._end(said.decode() or name)

    def _end(self, lost: str) -> None:
        with self._lock:
            if self._parted:
                return
            self._tell(lost.encode())
            sys.stdout.flush()
            print(lost_worker(lost, self._own), file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)

    def _tell(self, message: bytes) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(message)
            except OSError:  # the lost one
                continue

    def failed(self, error: Exception) -> WorkerLostError:
        """Returns what an error of a collective means."""
        time.sleep(_JOIN_SECONDS if self._connections else 0)  # `_end` comes
        reason = str(error).splitlines()[0][:200]
        return lost_worker(f"Another worker ({reason})", self._own)

    def part(self) -> None:
        """From now on hosts may end one before another."""
        with self._lock:
            self._parted = True
        self._tell(_BYE)

    def _exit(self) -> None:
        """Ends a process that fails alone, before JAX waits for the others."""
        if not self._parted:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _own_address() -> str:
    """Returns the IPv4 address of this host among the others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; TEST-NET-1
            return str(probe.getsockname()[0])
        except OSError:  # no route: all processes are on this machine
            return "127.0.0.1"


def _delay_abort() -> None:
    """Lets an abort() of JAX wait until the lost host is named.

    The handler is C's sleep, which takes the signal's number, 6, as seconds.
    A handler in Python would not run: it waits for the main thread.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
    libc.signal(int(signal.SIGABRT), sleep)
