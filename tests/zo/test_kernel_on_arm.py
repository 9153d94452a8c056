"""The compiled kernel gives the same bits on aarch64: cross-compiled, and run by an emulator."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from zo import kernel_numpy

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
SOURCE = Path(kernel_numpy.__file__).with_name("_kernel.c")
RUN_KEY, GROUP, START, SIZE = 0xC0FFEE01, 9, 512, 3001
MAIN = """
#include "%s"
#include <stdio.h>

int main(void) {
    static float values[%d];
    uint64_t seeds[] = {%s};
    int64_t steps[] = {%s};
    zo_add_in_place(%dull << 32 | %d, seeds, steps, %d, %d, values, %d, %d, 0.0009765625f);
    fwrite(values, sizeof values, 1, stdout);
    return 0;
}
"""


@pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"{COMPILER} or {EMULATOR} is not installed")
@pytest.mark.parametrize("steps", [[3], [-7], [3, -5, 100], [2**23, -(2**23), 9], [2**33, 5, -(2**33)]])
def test_the_same_bits(steps: list[int], tmp_path: Path) -> None:
    seeds, total = list(range(2**40, 2**40 + len(steps))), sum(map(abs, steps))
    arguments = (SOURCE, SIZE, ",".join(f"{seed}ull" for seed in seeds), ",".join(f"{step}ll" for step in steps))
    (tmp_path / "main.c").write_text(MAIN % (*arguments, RUN_KEY, GROUP, len(steps), total, SIZE, START))
    link = ["-static", "-Wl,--unresolved-symbols=ignore-all", "-o", str(tmp_path / "main")]
    subprocess.run([COMPILER, "-O3", f"-I{sysconfig.get_path('include')}", str(tmp_path / "main.c"), *link], check=True)
    found = np.frombuffer(subprocess.run([EMULATOR, str(tmp_path / "main")], check=True, capture_output=True).stdout, "<f4")
    wanted = np.zeros(SIZE, np.float32)
    given = (np.array(seeds, np.uint64), np.array(steps, np.int64))
    kernel_numpy.add_in_place(RUN_KEY, GROUP, *given, wanted, START, 2.0**-10, kernel_numpy.CHUNK)
    assert np.array_equal(found, wanted)
