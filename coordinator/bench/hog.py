"""The neighbour of `scripts/bench budget`: takes memory in small steps, holds it, and lets it go again, for ever."""

import mmap
import sys
import time

STEP = 2 << 20  # bytes
PAUSE = 0.06  # seconds between steps: 35 MB a second
HOLD, REST = 3.0, 6.0  # seconds


def main(peaks: list[int]) -> None:
    """peaks: bytes held at the height of one cycle after the other."""
    while True:
        for peak in peaks:
            held = []
            for _ in range(peak // STEP):
                held.append(mmap.mmap(-1, STEP))
                held[-1].write(b"\1" * STEP)
                time.sleep(PAUSE)
            time.sleep(HOLD)
            for each in held:
                each.close()
            time.sleep(REST)


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]])
