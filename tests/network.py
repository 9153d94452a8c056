"""Two network namespaces, and a wire between them that delays, loses or swallows packets: root, `ip` and /dev/net/tun are needed."""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TUNSETIFF, TUN_NO_HEADER, NEW_NETWORK = 0x400454CA, 0x0001 | 0x1000, 0x40000000
SERVER, DEVICE = "10.83.0.1", "10.83.0.2"


def missing() -> str:
    """What a namespace test lacks here; empty where it can run."""
    if os.geteuid():
        return "this is not root"
    if shutil.which("ip") is None or not Path("/dev/net/tun").exists():
        return "ip or /dev/net/tun is missing"
    made = subprocess.run(["ip", "netns", "add", "ezprobe"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", "ezprobe"], capture_output=True, check=False)
    return "" if made.returncode == 0 else "network namespaces cannot be made here"


class Network:
    """Namespaces `server` (10.83.0.1, and whatever is added) and `device` (10.83.0.2), while entered.

    delay: seconds, each way. loss: share of packets, drawn from a seed. dead: nothing gets through, and nobody is told.
    """

    def __init__(self, delay: float = 0.0, loss: float = 0.0, seed: int = 0) -> None:
        self.delay, self.loss, self.dead, self.carried, self.lost = delay, loss, False, 0, 0
        self._draw, self._stop = random.Random(seed), threading.Event()
        self.server, self.device = (f"ez{os.getpid()}{side}" for side in "sd")

    def __enter__(self) -> "Network":
        self._ends = [_end(name, address) for name, address in ((self.server, SERVER), (self.device, DEVICE))]
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)
        for name in (self.server, self.device):
            _ip("netns", "delete", name)
        shutil.rmtree(Path("/etc/netns") / self.device, ignore_errors=True)

    def add_address(self, address: str) -> None:
        """Another one for the server."""
        _ip("-n", self.server, "address", "add", f"{address}/24", "dev", "wire")

    def name(self, host: str, address: str) -> None:
        """What the device takes a name for, from now on."""
        path = Path("/etc/netns") / self.device / "hosts"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"127.0.0.1 localhost\n{address} {host}\n")  # the same inode, since it is mounted

    def within(self, name: str, command: list[str]) -> list[str]:
        """The command, run in a namespace."""
        return ["ip", "netns", "exec", name, *command]

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        for number in _count():
            if self._stop.is_set():
                return
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, target, packet = heapq.heappop(waiting)
                if not self.dead:
                    os.write(target, packet)
            pause = min(waiting[0][0] - now, 0.1) if waiting else 0.1
            for end in select.select(self._ends, [], [], max(0.0, pause))[0]:
                packet = os.read(end, 65536)
                self.carried += 1
                if self.dead or self._draw.random() < self.loss:
                    self.lost += 1
                else:
                    heapq.heappush(waiting, (time.monotonic() + self.delay, number, self._ends[self._ends.index(end) - 1], packet))


def _end(name: str, address: str) -> int:
    """A namespace, and the end of the wire in it."""
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    with ThreadPoolExecutor(1) as thread:  # only that thread enters the namespace
        end = thread.submit(_open, name).result()
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
    _ip("-n", name, "link", "set", "wire", "up")
    return end


def _open(name: str) -> int:
    with open(f"/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22s", b"wire", TUN_NO_HEADER, b""))
    return end


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
