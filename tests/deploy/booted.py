"""A real systemd, booted from a folder in namespaces of its own; the network is this machine's."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from machine import CERTIFICATES, ROOT, debian

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libpam-systemd", "login", "base-passwd", "procps", "mount", "util-linux"),
    *("python3", "python3-venv", "libstdc++6", "bash", "dash", "coreutils", "sed", "grep", "tar"),
)
BOOT = """
R=$1
mount --bind $R $R; mount -t proc proc $R/proc; mount -t sysfs sysfs $R/sys; mount -t tmpfs tmpfs $R/run; mount -t tmpfs tmpfs $R/tmp
mount --bind $2 $R/source; mount -o remount,bind,ro $R/source
if [ -d /sys/fs/cgroup/memory ]; then
    mount -t tmpfs -o mode=755 tmpfs $R/sys/fs/cgroup
    for c in memory pids; do mkdir $R/sys/fs/cgroup/$c; mount -t cgroup -o $c cgroup $R/sys/fs/cgroup/$c; done
    mkdir $R/sys/fs/cgroup/systemd $R/sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup $R/sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 $R/sys/fs/cgroup/unified
else
    mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 tmpfs $R/dev
for d in null zero full random urandom tty; do touch $R/dev/$d; mount --bind /dev/$d $R/dev/$d; done
mkdir $R/dev/shm $R/dev/pts; ln -s pts/ptmx $R/dev/ptmx
cd $R
exec chroot . env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target
"""
ENTER = ("nsenter", "-m", "-p", "-u", "-i", "-C", "-r", "-w")


class Booted:
    """Runs while entered. The checkout is at /source, read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = debian(folder, "amd64", *PACKAGES)
        master = folder / "usr/share/base-passwd"
        for name in ("passwd", "group"):
            shutil.copy(master / f"{name}.master", folder / "etc" / name)
        with (folder / "etc/passwd").open("a") as users, (folder / "etc/group").open("a") as groups:
            users.write("messagebus:x:100:100::/nonexistent:/usr/sbin/nologin\npi:x:1000:1000::/home/pi:/bin/bash\n")
            groups.write("messagebus:x:100:\npi:x:1000:\n")
        (folder / "etc/machine-id").write_text("")
        (folder / "source").mkdir()
        shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
        if CERTIFICATES.exists():
            (folder / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
            shutil.copy(CERTIFICATES, folder / CERTIFICATES.relative_to("/"))

    def __enter__(self) -> "Booted":
        self._groups = _own_groups()
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in self._groups)
        unshare = "exec setsid unshare -m -p -i -u -C --fork --kill-child --propagation private bash -c"
        command = ["bash", "-c", f'{enter} {unshare} "$0" bash "$@"', BOOT, str(self.folder), str(ROOT)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._wait(lambda: bool(children.read_text().split()))
        self._first = children.read_text().split()[0]
        self._wait(lambda: self.call("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # and with it, by --kill-child, all that runs in there
        self._process.wait()
        for group in self._groups:
            for inner in sorted(group.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    inner.rmdir()

    def call(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root."""
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PIP_CERT": str(CERTIFICATES)}
        environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_INDEX") or name.endswith("_proxy")}
        whole = [ENTER[0], "-t", self._first, *ENTER[1:], *map(str, command)]
        return subprocess.run(whole, capture_output=True, text=True, env=environment, timeout=300)

    def do(self, *command: object) -> str:
        """What a command that succeeds in there says."""
        found = self.call(*command)
        assert found.returncode == 0, f"{command}: {found.returncode}\n{found.stdout}\n{found.stderr}\n{self.journal()}"
        return found.stdout + found.stderr

    def show(self, unit: str, fact: str) -> str:
        """A property of a unit."""
        return self.do("systemctl", "show", "--value", "--property", fact, unit).strip()

    def journal(self, unit: str = "edge-agent") -> str:
        """What a unit logged."""
        return self.call("journalctl", "--no-pager", "--output=cat", "--unit", unit).stdout

    def _wait(self, true: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not true():
            assert self._process.poll() is None, "systemd does not come up"
            assert time.monotonic() < until, "systemd does not come up"
            time.sleep(0.1)


def _own_groups() -> list[Path]:
    """A fresh control group in each hierarchy, for systemd to be the root of."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        base = {"name=systemd": "systemd", "": "" if not Path("/sys/fs/cgroup/memory").is_dir() else "unified"}.get(kinds, kinds)
        if kinds in ("memory", "pids", "name=systemd", ""):
            parent = Path("/sys/fs/cgroup", base, path.lstrip("/"))
            if parent.is_dir():
                made.append(parent / f"edge-zo-test-{os.getpid()}")
                made[-1].mkdir()
    return made
