"""The command `edge-agent`."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from edge_agent import model_commands, plan_commands, status
from edge_agent.config import AgentConfig, JoinConfig
from edge_agent.solo_config import SoloConfig
from zo import cli, config, log
from zo.errors import StorageError, UserError
from zo.token import read as read_token

STATE = Path(os.environ.get("EDGE_AGENT_STATE", "edge-agent-state"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    top, commands = cli.parser(
        "edge-agent", "Teach a shared model from this device's own data, with forward passes only; text never leaves."
    )
    run = commands.add_parser("run", help="join a run and work for it", description="Join a run and work for it until it is over.")
    config.add_flags(run, AgentConfig)
    run.set_defaults(command=_run)
    join = commands.add_parser(
        "join",
        help="join a fleet by a token, then work for it",
        description="Join a fleet: make a key on this device and have it certified, once. Where --data (or agent.toml) names the examples,"
        " start working at once; else 'edge-agent run' does, or the service that waits for it. As root, it acts for the owner of the"
        " state folder.",
    )
    join.add_argument("token", help="the line that 'edge-coordinator token create' printed; - reads it from standard input")
    config.add_flags(join, JoinConfig)
    join.set_defaults(command=_join)
    train = commands.add_parser(
        "train",
        help="train alone, without a coordinator",
        description="Train alone on this device's data, into a ledger in the state folder; started again, it goes on where it ended.",
    )
    train.add_argument("--local", action="store_true", required=True, help="without a coordinator; with one, it is 'edge-agent run'")
    config.add_flags(train, SoloConfig)
    train.set_defaults(command=_train)
    told = commands.add_parser("status", help="what the agent of a state folder is doing")
    told.add_argument("--state", type=Path, default=STATE, help=f"[{STATE}]")
    told.add_argument("--json", action="store_true", help="one JSON object")
    told.add_argument("--check", action="store_true", help="end with 1 unless an agent works there and has lately said so")
    told.set_defaults(command=_status)
    audit = commands.add_parser(
        "audit",
        help="everything that ever left this device",
        description="Print every message that this device has sent to a coordinator, with all that it holds; the last lines count them.",
    )
    audit.add_argument("--state", type=Path, default=STATE, help=f"[{STATE}]")
    audit.add_argument("--json", action="store_true", help="one JSON object a message")
    audit.set_defaults(command=_audit)
    plan_commands.add(commands)
    model_commands.add(commands, STATE)
    return cli.run(top, arguments)


def _run(given: argparse.Namespace) -> None:
    from edge_agent import unjoined
    from edge_agent.daemon import Daemon
    from edge_agent.signals import Signals
    from zo.systemd import Systemd

    log.check_clock()
    settings = config.load(AgentConfig, given, "EDGE_AGENT")
    be_nice(settings.cpu.niceness)
    systemd = Systemd()
    signals = Signals(lambda: config.load(AgentConfig, given, "EDGE_AGENT"), systemd)
    if settings.wait_to_join:
        unjoined.wait(settings, signals.stop, systemd)
    if not signals.stop.is_set():
        daemon = Daemon(settings, signals.stop, progress=lambda facts: systemd.progress(facts["state"], facts.get("reason", "")))
        systemd.ready()
        daemon.run()
    signals.restart()


def _join(given: argparse.Namespace) -> None:
    from edge_agent import join, unjoined
    from edge_agent.sent import Sent
    from edge_agent.state import State
    from zo import examples

    settings = config.load(JoinConfig, given, "EDGE_AGENT")
    folder = Path(settings.state)
    unjoined.become_owner(folder)
    if settings.data:
        examples.files(Path(settings.data))  # before the token is spent
    token = read_token(sys.stdin.readline() if given.token == "-" else given.token)
    awaited = unjoined.waits(folder)
    state = State(folder, settings.disk_bytes_per_day)  # no other agent works in it, and it can be written
    identity = join.join(token, settings.coordinator, Sent(folder, settings.audit_bytes, state.budget).add)
    state.close()
    identity.save(folder)  # last: an agent that waits for it begins at once
    print(f"joined the fleet of {identity.coordinator}; key and certificate are in {settings.state}, for no one else to read", flush=True)
    if awaited:
        print("the agent that waited for it begins to work")
    elif settings.data:
        _run(given)
    else:
        print(f"start with: edge-agent run --state {settings.state} --data FOLDER; a service: systemctl start edge-agent")


def _train(given: argparse.Namespace) -> None:
    from edge_agent.solo import Solo

    log.check_clock()
    if not config.is_given("state", given, "EDGE_SOLO"):
        vars(given)["setting state"] = str(STATE)
    settings = config.load(SoloConfig, given, "EDGE_SOLO")
    be_nice(settings.cpu.niceness)
    Solo(settings, _told_to_stop()).run()


def be_nice(niceness: int) -> None:
    """Give way to other processes; never the other way round."""
    now = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > now:
        os.nice(niceness - now)


def _told_to_stop() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _audit(given: argparse.Namespace) -> None:
    from edge_agent import sent

    if not (given.state / sent.NAME).exists():
        raise StorageError(f"{given.state} holds no record of an agent; give the folder of one with --state")
    for message in sent.messages(given.state):
        print(json.dumps(sent.plain(message)) if given.json else sent.told(message))
    if not given.json:
        for name, (count, size) in sorted(sent.totals(sent.messages(given.state)).items()):
            print(f"{count} times {name}, {size} bytes")
    if lost := sent.unreadable(given.state):
        raise StorageError(f"what is shown is not all that was sent: {', '.join(lost)} cannot be read; the disk may be failing")


def _status(given: argparse.Namespace) -> None:
    facts = status.read(given.state)
    print(json.dumps(facts) if given.json else status.told(facts))
    if given.check and (why := status.ill(facts)):
        raise UserError(f"{given.state}: {why}")


if __name__ == "__main__":
    sys.exit(main())
