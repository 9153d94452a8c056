"""The commands of `edge-coordinator` that say who may take part: init, token, device."""

import argparse
import json
import re
import time
from pathlib import Path

from coordinator.config import place
from zo.errors import StorageError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add(commands: argparse._SubParsersAction) -> None:
    """Add their parsers."""
    init = _with_fleet(commands.add_parser("init", help="make a fleet: its certificate authority and the coordinator's certificate"))
    init.add_argument("--address", required=True, metavar="HOST:PORT", help="where devices will find the coordinator")
    init.set_defaults(command=_init)
    token = commands.add_parser("token", help="what lets new devices join").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    create = _with_fleet(token.add_parser("create", help="print a token, for 'edge-agent join'; it is a secret"))
    create.add_argument("--uses", type=int, default=1, help="devices that may join with it [1]")
    create.add_argument("--ttl", type=_seconds, default="1h", metavar="TIME", help="how long it works: 30m, 1h, 7d [1h]")
    create.add_argument("--address", default="", metavar="HOST:PORT", help="where these devices find the coordinator [as given to init]")
    create.set_defaults(command=_create_token)
    listed = _with_fleet(token.add_parser("list", help="tokens that still work, by name"))
    listed.set_defaults(command=_list_tokens)
    end = _with_fleet(token.add_parser("revoke", help="let nobody in by it any more"))
    end.add_argument("name", help="as 'token list' shows it")
    end.set_defaults(command=_revoke_token)
    device = commands.add_parser("device", help="who has joined").add_subparsers(title="commands", required=True, metavar="COMMAND")
    every = _with_fleet(device.add_parser("list", help="devices: since when, seen when, and how many of their requests were not taken"))
    every.add_argument("--json", action="store_true", help="one JSON object")
    every.set_defaults(command=_list_devices)
    out = _with_fleet(device.add_parser("revoke", help="turn devices away from now on, also while a run is served"))
    out.add_argument("device", nargs="+", help="id, as 'device list' shows it")
    out.set_defaults(command=_revoke_devices)


def _with_fleet(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--fleet", type=Path, default=place("fleet"), help="folder of the fleet [%(default)s]")
    return parser


def _seconds(text: str) -> float:
    match = re.fullmatch("([0-9]{1,6})([smhd])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 30m, 1h or 7d")
    return int(match[1]) * UNITS[match[2]]


def _init(given: argparse.Namespace) -> None:
    from coordinator.fleet import Fleet

    fleet = Fleet.make(given.fleet, given.address)
    print(f"{given.fleet}: a new fleet, whose coordinator is at {fleet.address}; keep the folder secret, and back it up")
    print("next: 'edge-coordinator token create', and on each device 'edge-agent join TOKEN'")


def _create_token(given: argparse.Namespace) -> None:
    from coordinator.fleet import Fleet

    print(Fleet(given.fleet).create_token(given.uses, given.ttl, given.address).text)


def _list_tokens(given: argparse.Namespace) -> None:
    from coordinator.fleet import Fleet

    rows = Fleet(given.fleet).tokens()
    for name, expires, uses in rows:
        print(f"{name}  {uses} uses left, until {_date(expires)}")
    if not rows:
        print("no tokens; make one with 'edge-coordinator token create'")


def _revoke_token(given: argparse.Namespace) -> None:
    from coordinator.fleet import Fleet

    Fleet(given.fleet).revoke_token(given.name)
    print(f"token {given.name}: revoked")


def _list_devices(given: argparse.Namespace) -> None:
    from coordinator.fleet import Fleet

    devices = Fleet(given.fleet).devices()
    if given.json:
        print(json.dumps({"devices": [vars(device) for device in devices]}))
        return
    print("device            joined            seen              certificate until  not taken")
    for each in devices:
        until = f"revoked {_date(each.revoked)}" if each.revoked else f"{_date(each.expires):17}"
        print(f"{each.id}  {_date(each.enrolled)}  {_date(each.seen) if each.seen else '-':16}  {until}  {each.refused:9}")


def _revoke_devices(given: argparse.Namespace) -> None:
    from coordinator.fleet import Fleet

    fleet = Fleet(given.fleet)
    for device in given.device:
        fleet.revoke(device)
        print(f"{device}: revoked")


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        raise StorageError(f"the list of devices holds {seconds}, which is no time; restore it from a backup") from None
