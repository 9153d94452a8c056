"""The arm64 image, built here without Docker and run by an emulator of the processor."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import CERTIFICATES, ROOT, debian, run

BASE_PACKAGES = ("python3", "ca-certificates", "libstdc++6", "dash", "bash", "coreutils")
BUILDER_PACKAGES = (*BASE_PACKAGES, "python3-venv", "python3-dev", "gcc", "gcc-aarch64-linux-gnu", "libc6-dev", "libc6-dev-arm64-cross")
PI = "cortex-a72"  # of a Raspberry Pi 4; the emulator's default has SVE, with other numbers and a thirtieth of the speed
STANZA = """processor\t: {}
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd08

"""
ENTER = """
R=$1; shift
mount -t proc proc $R/proc; mount --rbind /dev $R/dev; mount --bind /sys $R/sys; mount -t tmpfs -o mode=1777 tmpfs $R/tmp
mount --bind $R.cpuinfo $R/proc/cpuinfo
while [ "$1" != -- ]; do mkdir -p $R$2; mount --bind $1 $R$2; shift 2; done; shift
exec chroot --userspec=10001:10001 $R "$@"
"""


def emulated() -> str:
    """Why aarch64 programs are not emulated here; empty where they are."""
    if platform.machine() != "x86_64":
        return f"needs an x86-64 machine, not {platform.machine()}"
    return "" if Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists() else "no emulator of aarch64 is registered (binfmt_misc)"


class Image:
    """The image as scripts/build-image makes it with buildah, on bases of plain Debian; its files are in `root`."""

    NAME = "localhost/edge-agent-test:arm64"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n')
        self._environment = os.environ | {"CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"), "BUILDER": "buildah", "IMAGE": self.NAME}
        builder = debian(folder / "builder", "amd64", *BUILDER_PACKAGES)
        headers = builder / "usr/include/x86_64-linux-gnu/python3.11"  # Debian keeps the one that differs apart; these two do not
        shutil.copytree(headers, builder / "usr/include/aarch64-linux-gnu/python3.11")
        base = debian(folder / "base", "arm64", *BASE_PACKAGES)
        self.base_bytes = size(base)
        for architecture, rootfs in (("amd64", builder), ("arm64", base)):
            self._import(architecture, rootfs)
        certificates = (
            ["-v", f"{CERTIFICATES}:{CERTIFICATES}:ro", "--build-arg", f"PIP_CERT={CERTIFICATES}"] if CERTIFICATES.exists() else []
        )
        bases = ["--build-arg", "BASE_IMAGE=localhost/base-arm64", "--build-arg", "BUILD_IMAGE=localhost/base-amd64"]
        run(ROOT / "scripts/build-image", "--network", "host", "--pull-never", *bases, *certificates, env=self._environment)
        self.root = Path(self._buildah("mount", self._buildah("from", "--pull-never", self.NAME)))
        self.root.with_name(f"{self.root.name}.cpuinfo").write_text("".join(STANZA.format(each) for each in range(os.cpu_count() or 1)))

    def config(self) -> dict[str, Any]:
        """What the image says of itself."""
        return json.loads(self._buildah("inspect", "--type", "image", self.NAME))["Docker"]

    def start(self, *command: object, binds: dict[Path, str], log: Path, **environment: object) -> subprocess.Popen[bytes]:
        """Start a command in the image, as its user and with its environment. binds: folders of this machine, and where they are seen."""
        settings = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/state", "QEMU_CPU": PI, "ORT_DISABLE_TELEMETRY": 1} | environment
        mounts = [text for folder, place in binds.items() for text in (str(folder), place)]
        assigned = [f"{name}={value}" for name, value in settings.items()]
        whole = [
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            ENTER,
            "sh",
            str(self.root),
            *mounts,
            "--",
            "env",
            "-i",
            *assigned,
        ]
        with log.open("wb") as output:
            return subprocess.Popen([*whole, *map(str, command)], stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def remove(self) -> None:
        """It, and what it was made from: gigabytes."""
        self._buildah("umount", "--all")
        shutil.rmtree(self._folder)

    def _import(self, architecture: str, rootfs: Path) -> None:
        container = self._buildah("from", "--arch", architecture, "scratch")
        self._buildah("add", "--quiet", container, rootfs, "/")
        self._buildah(
            "config", "--arch", architecture, "--os", "linux", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container
        )
        self._buildah("commit", "--quiet", "--rm", container, f"localhost/base-{architecture}")
        shutil.rmtree(rootfs)

    def _buildah(self, *arguments: object) -> str:
        return run("buildah", *arguments, env=self._environment).strip()


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def packages(folder: Path, *names: str) -> Path:
    """Wheels of these packages for aarch64 and Python 3.11, unpacked in a folder; what they depend on is not."""
    tags = [f"--platform={tag}_aarch64" for tag in ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")]
    options = ("--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11")
    run(sys.executable, "-m", "pip", "install", *options, *tags, "--target", folder, *names)
    return folder
