"""`scripts/convert_llama2c.py` given what it cannot make anything of. (What it makes of a model is compared in test_parity.)"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"short", "is not of llama2.c"),
        (b"\xff" * 28, "is not of llama2.c (its header says"),
        (b"\x02\0\0\0" * 7, "is not of llama2.c (it ends before 4 values of shape (2, 2))"),
    ],
)
def test_what_is_no_checkpoint_of_llama2c_is_told_in_one_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.bin").write_bytes(content)
    command = [sys.executable, ROOT / "scripts/convert_llama2c.py", tmp_path / "model.bin", tmp_path / "no", tmp_path / "out"]
    ended = subprocess.run(command, capture_output=True, text=True)
    (line,) = ended.stderr.splitlines()
    assert (ended.returncode, line.startswith(f"scripts/convert_llama2c.py: {tmp_path / 'model.bin'} {said}")) == (1, True)
    assert not (tmp_path / "out").exists()
