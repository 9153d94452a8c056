"""What this process holds in memory, from /proc: resident, at most so far, and how much of it is a mapped file."""

import contextlib
import ctypes
import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
M_MMAP_THRESHOLD, LARGE = -3, 1 << 20  # of malloc.h; bytes
_C = ctypes.CDLL(None)
_peak_before_reset = 0


def resident(process: int | str = "self") -> int:
    """Bytes; 0 where there is no such process any more."""
    try:
        return int(Path(f"/proc/{process}/statm").read_bytes().split()[1]) * PAGE
    except OSError:
        return 0


def peak() -> int:
    """Most bytes resident since the process began. From /proc: getrusage's figure begins with that of whoever started the process."""
    return max(_peak_before_reset, _high_water())


def since_reset() -> int:
    """Most bytes resident since `reset`, or since the process began where that is not allowed."""
    return _high_water()


def reset() -> None:
    """Let the kernel's high-water mark begin anew, where that is allowed (/proc/self/clear_refs)."""
    global _peak_before_reset
    before = peak()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        _peak_before_reset = before


def map_large() -> None:
    """Let the C library map whatever is larger than LARGE, so that it is given back once freed: w8 unpacks a matrix in every run."""
    if hasattr(_C, "mallopt"):
        _C.mallopt(M_MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Let the C library return to the system what it does not use: it keeps it otherwise."""
    if hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)


def mapped(file: Path) -> int:
    """Bytes of a file's mappings that are resident."""
    total, inside, name = 0, False, str(file.resolve())
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                inside = line.rstrip().endswith(name)
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) << 10
    return total


def _high_water() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)
