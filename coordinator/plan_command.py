"""`edge-coordinator plan`: which blocks each device trains, as a table and a picture."""

import argparse
import json
import string
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from coordinator import replay
from coordinator.allocation import Allocation, Asked, Asking, Base, allocate, blocks, turn
from coordinator.blocks import known
from coordinator.config import place
from coordinator.sqlite_store import SqliteStore
from zo.errors import ConfigError
from zo.manifest import Manifest, Precision
from zo.messages import Profile
from zo.structure import from_plain

ACROSS = 100  # devices beside each other in the picture
TURNS = string.digits[1:] + string.ascii_lowercase  # names of the rounds of a window
MOST = 100_000  # devices of a file
LARGEST = 1 << 53  # of a number there


@dataclass(frozen=True)
class Kind(Profile):
    """A row of a file of devices: so many alike."""

    precision: Precision | None = None
    count: int = 1


def add(commands: argparse._SubParsersAction) -> None:
    """Add the parser."""
    text = "which blocks each device trains, by its memory and speed: a table, and a picture of blocks by devices"
    parser = commands.add_parser("plan", help=text, description=f"{text[0].upper()}{text[1:]}. docs/blocks.md tells how they are chosen.")
    parser.add_argument("run", help="name of the run")
    parser.add_argument(
        "--devices", type=Path, metavar="FILE", help="plan for these, as docs/blocks.md describes, instead of the run's own"
    )
    parser.add_argument("--slack", type=float, help="of the convergence proxy, for less memory [the run's]")
    parser.add_argument("--store", type=Path, default=place("store"), help="[%(default)s]")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(command=_plan)


def _plan(given: argparse.Namespace) -> None:
    store = SqliteStore(given.store)
    run = store.run(given.run)
    manifest, summaries = replay.opened(run).manifest, store.summaries(run.id)
    last: dict[str, Any] = next((each for each in reversed(summaries) if "profiles" in each), {})
    devices = read(given.devices, len(manifest.stages)) if given.devices else known(summaries)
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


def read(path: Path, stages: int) -> dict[int, Asking]:
    """Devices 0, 1, ... of a file, for a bundle of so many stages. ConfigError where it cannot be read, or is no list of such."""
    try:
        rows = from_plain(tuple[Kind, ...], json.loads(path.read_text(encoding="utf-8-sig")), path.name)
        for place, row in enumerate(rows):
            _check(row, f"{path.name}[{place}]", stages)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check the path after --devices") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no list of devices: {error}") from None
    if not 1 <= sum(row.count for row in rows) <= MOST:
        raise ConfigError(f"{path} must list from 1 to {MOST} devices")
    alike = [(row, Profile(**{each.name: getattr(row, each.name) for each in fields(Profile)})) for row in rows]
    return dict(enumerate(Asking(profile, row.precision) for row, profile in alike for _ in range(row.count)))


def _check(row: Kind, where: str, stages: int) -> None:
    """ValueError where a field is out of range."""
    if row.count < 1:
        raise ValueError(f"{where}.count = {row.count} must be at least 1")
    for name in ("memory_mib", "stage_ns", "single_ns", "signs_per_second", "bytes_per_second"):
        value = getattr(row, name)
        if any(not 0 <= each < LARGEST for each in (value if isinstance(value, tuple) else [value])):
            raise ValueError(f"{where}.{name} must be from 0 to {LARGEST - 1}")
    if {len(row.stage_ns), len(row.single_ns)} not in ({0}, {stages}):
        raise ValueError(
            f"{where}: stage_ns and single_ns must have a number for each of the bundle's {stages} stages, or both be left out"
        )


def described(made: Allocation, devices: dict[int, Asking], manifest: Manifest, asked: Asked) -> dict[str, Any]:
    """The allocation as plain data (JSON), with what it takes of each device: MiB of the model at the peak, seconds of a round of MeZO."""
    rows, count = [], len(blocks(manifest))
    for device, share in made.shares.items():
        base, profile = Base(manifest.at(share.precision), asked), devices[device].profile
        branches, examples = base.runs(profile, share.active)
        takes = max(base.seconds(profile)[base.stages[0 if made.moves else tried[0]]] for tried in share.blocks)
        tried = [turn([1.0] * count, share.active, 1, device)] if made.moves else share.blocks
        row: dict[str, Any] = {"device": device, "precision": share.precision, "blocks": [list(each) for each in tried]}
        row |= {"branches": branches, "examples": examples, "memory_mib": profile.memory_mib, "seconds": round(takes, 3)}
        if manifest.model:
            row["need_mib"] = -(-base.needed(share.active, branches * examples * manifest.task.max_tokens) >> 20)
        rows.append(row)
    too_small = {str(device): why for device, why in made.too_small.items()}
    found = {"count": count, "window": made.window, "proxy": round(made.proxy, 1), "exact": made.exact, "moves": made.moves}
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
        rounds = "blocks go round the devices, those where the loss slopes most more often; above, one round where all slope alike"
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
