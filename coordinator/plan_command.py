"""`edge-coordinator plan`: which blocks each device trains, as a table and a picture."""

import argparse
import json
import string
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from coordinator import replay
from coordinator.allocation import Allocation, Asked, Asking, Base, allocate, blocks
from coordinator.blocks import known
from coordinator.sqlite_store import SqliteStore
from zo.errors import ConfigError
from zo.manifest import Manifest, Precision
from zo.messages import Profile
from zo.structure import StructureError, from_plain

ACROSS = 100  # devices beside each other in the picture
TURNS = string.digits[1:] + string.ascii_lowercase  # names of the rounds of a window
MOST = 100_000  # devices of a file


@dataclass(frozen=True)
class Kind(Profile):
    """A row of a file of devices: so many alike."""

    precision: Precision | None = None
    count: int = 1


def add(commands: argparse._SubParsersAction, store: Path) -> None:
    """Add the parser. store: the default."""
    text = "which blocks each device trains, by its memory and speed: a table, and a picture of blocks by devices"
    parser = commands.add_parser("plan", help=text, description=f"{text[0].upper()}{text[1:]}. docs/blocks.md tells how they are chosen.")
    parser.add_argument("run", help="name of the run")
    parser.add_argument(
        "--devices", type=Path, metavar="FILE", help="plan for these, as docs/blocks.md describes, instead of the run's own"
    )
    parser.add_argument("--slack", type=float, help="of the convergence proxy, for less memory [the run's]")
    parser.add_argument("--store", type=Path, default=store, help=f"[{store}]")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(command=_plan)


def _plan(given: argparse.Namespace) -> None:
    store = SqliteStore(given.store)
    run = store.run(given.run)
    manifest, summaries = replay.opened(run).manifest, store.summaries(run.id)
    last: dict[str, Any] = next((each for each in reversed(summaries) if "profiles" in each), {})
    devices = read(given.devices) if given.devices else known(summaries)
    if not devices:
        raise ConfigError(f"run {run.name!r} has not closed a round with devices that tell what they can do; name some with --devices FILE")
    slack = last.get("slack", 0.0) if given.slack is None else given.slack
    if not 0 <= slack < 10:
        raise ConfigError(f"--slack {slack:g} must be from 0 to below 10")
    asked = from_plain(Asked, last["asked"]) if last else Asked()
    try:
        made = allocate(devices, manifest, asked, slack)
    except ConfigError as error:
        raise ConfigError(f"{given.devices or given.store}: {error}") from None
    made.check()
    found = described(made, devices, manifest, asked)
    print(json.dumps({"run": run.name, "slack": slack} | found) if given.json else told(found))


def read(path: Path) -> dict[int, Asking]:
    """Devices 0, 1, ... of a file. ConfigError where it cannot be read, or is no list of such."""
    try:
        rows = from_plain(tuple[Kind, ...], json.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, ValueError, StructureError) as error:
        raise ConfigError(f"{path} is no list of devices: {error}") from None
    if any(row.count < 1 for row in rows) or sum(row.count for row in rows) > MOST:
        raise ConfigError(f"{path}: every count must be at least 1, and all together at most {MOST}")
    alike = [(row, Profile(**{each.name: getattr(row, each.name) for each in fields(Profile)})) for row in rows]
    return dict(enumerate(Asking(profile, row.precision) for row, profile in alike for _ in range(row.count)))


def described(made: Allocation, devices: dict[int, Asking], manifest: Manifest, asked: Asked) -> dict[str, Any]:
    """The allocation as plain data (JSON), with what it takes of each device: MiB of the model at the peak, seconds of a round of MeZO."""
    rows = []
    for device, share in made.shares.items():
        base, profile = Base(manifest.at(share.precision), asked), devices[device].profile
        branches, examples = base.runs(profile, share.active)
        takes = max(base.seconds(profile)[base.stages[0 if made.moves else turn[0]]] for turn in share.blocks)
        row: dict[str, Any] = {"device": device, "precision": share.precision, "blocks": [list(turn) for turn in share.blocks]}
        row |= {"branches": branches, "examples": examples, "memory_mib": profile.memory_mib, "seconds": round(takes, 3)}
        if manifest.model:
            row["need_mib"] = -(-base.needed(share.active, branches * examples * manifest.task.max_tokens) >> 20)
        rows.append(row)
    too_small = {str(device): why for device, why in made.too_small.items()}
    found = {"count": len(blocks(manifest)), "window": made.window, "proxy": round(made.proxy, 1), "exact": made.exact, "moves": made.moves}
    return found | {"devices": rows, "too_small": too_small}


def told(found: dict[str, Any]) -> str:
    """The same for a person."""
    lines = ["device  base  blocks     branches  examples  MiB needed  of     seconds a round"]
    for row in found["devices"]:
        counts = sorted({len(turn) for turn in row["blocks"]})
        active = f"{'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} of {found['count']}"
        room = f"{row.get('need_mib', '?'):>10}  {row['memory_mib'] or '?':<6}"
        lines.append(
            f"{row['device']:6}  {row['precision']:4}  {active:10} {row['branches']:8}  {row['examples']:8}  {room} {row['seconds']:15.3f}"
        )
    lines += [f"{device:>6}  too small: {why}" for device, why in found["too_small"].items()]
    lines += ["", picture(found), ""]
    rounds = (
        f"every block has its turn in {found['window']} rounds (1, 2, ...: in which)"
        if found["window"] > 1
        else "every block in every round"
    )
    best = "the best there is" if found["exact"] else "no better one was found"
    if found["moves"]:
        rounds += f"; after each {'window' if found['window'] > 1 else 'round'} all go on to the block above"
    return "\n".join([*lines, f"{rounds}; sum of values over contributors {found['proxy']:,.0f}, {best}"])


def picture(found: dict[str, Any]) -> str:
    """Blocks, the topmost first, by devices: # where one is tried in every round; and how many try it."""
    lines, rows = list[str](), found["devices"]
    for start in range(0, len(rows), ACROSS):
        part = rows[start : start + ACROSS]
        lines += [f"{'block':>5}  devices {part[0]['device']} to {part[-1]['device']}"]
        for block in reversed(range(found["count"])):
            cells = [_cell([block in turn for turn in row["blocks"]]) for row in part]
            lines.append(f"{block:5}  {''.join(cells)}  {sum(cell != '.' for cell in cells)}")
    return "\n".join(lines)


def _cell(turns: list[bool]) -> str:
    if all(turns):
        return "#"
    if not any(turns):
        return "."
    return TURNS[turns.index(True)] if sum(turns) == 1 and turns.index(True) < len(TURNS) else "+"
