"""A device that has not joined a fleet yet: its agent waits for that, and whoever lets it in need not know its user."""

import logging
import os
import sys
import threading
from pathlib import Path

from edge_agent import identity, status
from edge_agent.config import AgentConfig
from edge_agent.state import State
from zo.errors import StorageError
from zo.systemd import Systemd

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between looks


def wait(config: AgentConfig, stop: threading.Event, systemd: Systemd) -> None:
    """Return once the device has joined, or `stop` is set. The state folder is free meanwhile: 'edge-agent join' works in it."""
    folder = Path(config.state)
    if config.insecure_loopback or identity.load(folder):
        return
    reason = f"this device has not joined a fleet yet; work begins after: edge-agent join TOKEN --state {folder.absolute()}"
    state = State(folder, config.disk_bytes_per_day)  # no other agent works in it, and it can be written
    status.Status(state).update(state=status.UNJOINED, reason=reason)
    state.close()
    log.info("%s", reason)
    systemd.ready()
    while not (stop.is_set() or identity.load(folder)):
        systemd.progress(status.UNJOINED, reason)
        stop.wait(LOOK)


def waits(folder: Path) -> bool:
    """Whether an agent waits there for the device to join."""
    try:
        facts = status.read(folder)
    except StorageError:
        return False
    return bool(facts["alive"] and facts["state"] == status.UNJOINED and facts["pid"] != os.getpid())


def become_owner(folder: Path) -> None:
    """As root, begin again as the user whom the folder belongs to: a service of that user has to read what is put there."""
    if os.geteuid() == 0 and folder.exists() and (owner := folder.stat()).st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
