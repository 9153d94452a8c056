"""What the agent does at signals. (tests/deploy/test_systemd.py runs it under a real systemd.)"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from systemd_line import environment, heard, listening

RESTARTS = """
import sys, time
from edge_agent.signals import Signals
from zo.errors import ConfigError
from zo.systemd import Systemd

def check():
    if open(sys.argv[1]).read() == "wrong":
        raise ConfigError("wrong")

systemd = Systemd()
signals = Signals(check, systemd)
systemd.ready()
signals.stop.wait(30)
signals.restart()
"""
HANGUP = """
import os
from edge_agent.signals import Signals
from zo.systemd import Systemd
Signals(print, Systemd({})).stop.wait(0)
os.kill(os.getpid(), 1)
"""


def start(line: socket.socket, settings: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", RESTARTS, str(settings)], env=os.environ | environment(line))
    assert line.recv(100) == b"READY=1"
    return process


def test_a_hangup_starts_the_same_process_again_unless_the_settings_are_wrong(tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_text("wrong")
    with listening(tmp_path) as line:
        process = start(line, settings)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert heard(line) == []
        settings.write_text("right")
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            assert line.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert line.recv(100) == b"READY=1"
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.skipif(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, reason="hangups are ignored here, as under nohup")
def test_a_hangup_without_systemd_ends_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", HANGUP]).returncode == -signal.SIGHUP
