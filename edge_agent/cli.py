"""The command `edge-agent`."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from edge_agent import status
from edge_agent.config import AgentConfig
from edge_agent.solo_config import SoloConfig
from zo import cli, config, log
from zo.errors import StorageError, UserError
from zo.manifest import PRECISIONS
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
    config.add_flags(join, AgentConfig)
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
    _add_plan(commands)
    _add_models(commands)
    return cli.run(top, arguments)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser(
        "plan",
        help="what fits into memory, and how this device would best train a bundle",
        description=(
            "Predict what training takes in memory by every method, with gradients and without, and what fits. Of a bundle,"
            " measure also its stages on this device, and tell what equal progress would cost with every way to cut it."
        ),
    )
    plan.add_argument("--memory", metavar="SIZE", help="as 800MB, 1GiB or 25%% of this machine's [what an agent may take here]")
    plan.add_argument("--bundle", "--model", type=Path, metavar="BUNDLE", help="its folder")
    plan.add_argument("--shape", metavar="NAME", help="instead, a published model, as llama-1b; any unknown name lists them")
    plan.add_argument("--precision", choices=PRECISIONS, help="base to compute with [the bundle's default]")
    plan.add_argument("--algorithm", choices=["mezo", "fedspzo"], default="fedspzo", help="[fedspzo]")
    plan.add_argument("--clean", action="store_true", help="the clean form as well (split.clean of a run)")
    plan.add_argument("--directions", type=int, default=1, help="of the lowest part, side by side [1]")
    plan.add_argument("--examples", "--batch", type=int, default=8, metavar="B", help="in a batch [8]")
    plan.add_argument("--tokens", type=int, default=32, metavar="S", help="of an example [32]")
    plan.add_argument("--every-token", action="store_true", help="a loss at every token, as in language modelling, not one an example")
    plan.add_argument("--threads", type=int, default=1, help="[1]")
    plan.add_argument("--json", action="store_true", help="one JSON object")
    plan.set_defaults(command=_plan)
    calibrate = commands.add_parser(
        "calibrate",
        help="how well probes of each size measure here",
        description=(
            "Measure, on this processor, signal, noise and bias of probes of every size, for every base of a bundle in the folder:"
            " against its base fp32, or of noise alone where it has none. A star marks the size that is best here."
        ),
    )
    calibrate.add_argument("--bundle", type=Path, required=True, help="its folder")
    calibrate.add_argument("--data", type=Path, help="folder of *.jsonl files, or one file [random tokens]")
    calibrate.add_argument("--precision", choices=PRECISIONS, help="one base [all that the folder holds]")
    calibrate.add_argument("--threads", type=int, default=1, help="[1]")
    calibrate.add_argument("--json", action="store_true", help="one JSON object")
    calibrate.set_defaults(command=_calibrate)


def _add_models(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser("evaluate", help="how good the common model is, and the personal one where there is one")
    evaluate.add_argument("--data", type=Path, required=True, help="labelled .jsonl file, or a folder of them")
    evaluate.add_argument("--json", action="store_true", help="one JSON object")
    evaluate.set_defaults(command=_evaluate)
    predict = commands.add_parser(
        "predict",
        help="label texts from standard input, with the personal model where there is one",
        description='Label texts from standard input, plain lines or {"text": "..."}; one JSON object a line on standard output.',
    )
    predict.add_argument("--common", action="store_true", help="use the common model even where there is a personal one")
    predict.set_defaults(command=_predict)
    for each in (evaluate, predict):
        each.add_argument("--state", type=Path, default=STATE, help=f"the agent's folder [{STATE}]")
        each.add_argument("--bundle", default="", help="the bundle's folder [the newest in the state folder]")
        each.add_argument("--precision", choices=PRECISIONS, help="base to compute with [the bundle's default, or the one downloaded]")


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

    stop, works = _told_to_stop(), config.is_given("data", given, "EDGE_AGENT")
    if not works:
        vars(given)["setting data"] = ""
    settings = config.load(AgentConfig, given, "EDGE_AGENT")
    folder = Path(settings.state)
    unjoined.become_owner(folder)
    token = read_token(sys.stdin.readline() if given.token == "-" else given.token)
    awaited = unjoined.waits(folder)
    state = State(folder, settings.disk_bytes_per_day)  # no other agent works in it, and it can be written
    identity = join.join(token, stop, settings.coordinator, Sent(folder, settings.audit_bytes, state.budget).add)
    state.close()
    identity.save(folder)  # last: an agent that waits for it begins at once
    print(f"joined the fleet of {identity.coordinator}; key and certificate are in {settings.state}, for no one else to read", flush=True)
    if awaited:
        print("the agent that waited for it begins to work")
    elif works:
        _run(given)
    else:
        print(f"start with: edge-agent run --state {settings.state} --data FOLDER; a service: systemctl start edge-agent")


def _train(given: argparse.Namespace) -> None:
    from edge_agent.solo import Solo

    log.check_clock()
    settings = config.load(SoloConfig, given, "EDGE_SOLO")
    be_nice(settings.cpu.niceness)
    Solo(settings, _told_to_stop()).run()


def _plan(given: argparse.Namespace) -> None:
    from edge_agent import plan

    found = plan.measure(given)
    print(json.dumps(found) if given.json else plan.told(found))


def _calibrate(given: argparse.Namespace) -> None:
    from edge_agent import calibrate

    found = calibrate.measure(given)
    print(json.dumps(found) if given.json else calibrate.told(found))


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


def _evaluate(given: argparse.Namespace) -> None:
    from edge_agent.personal import Models, told

    found = Models(given.state, given.bundle, given.precision).evaluate(given.data)
    print(json.dumps(found) if given.json else told(found))


def _predict(given: argparse.Namespace) -> None:
    from edge_agent.personal import Models

    for answer in Models(given.state, given.bundle, given.precision).predict(sys.stdin.buffer, given.common):
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def _audit(given: argparse.Namespace) -> None:
    from edge_agent import sent

    if not (given.state / sent.NAME).exists():
        raise StorageError(f"{given.state} holds no record of an agent; give the folder of one with --state")
    for message in sent.messages(given.state):
        print(json.dumps(sent.plain(message)) if given.json else sent.told(message))
    if not given.json:
        for name, (count, size) in sorted(sent.totals(sent.messages(given.state)).items()):
            print(f"{count} times {name}, {size} bytes")


def _status(given: argparse.Namespace) -> None:
    facts = status.read(given.state)
    print(json.dumps(facts) if given.json else status.told(facts))
    if given.check and (why := status.ill(facts)):
        raise UserError(f"{given.state}: {why}")


if __name__ == "__main__":
    sys.exit(main())
