"""The commands of `edge-coordinator` that go through a run's ledger."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from coordinator import history, replay
from coordinator.config import place
from coordinator.sqlite_store import SqliteStore
from coordinator.store import RunRow, Store
from zo.bundle import open_bundle
from zo.errors import ConfigError, StorageError
from zo.tiles import TILE, Tiles, TilesUnavailable


def add(commands: argparse._SubParsersAction) -> None:
    """Add their parsers."""
    log = _parser(commands, "log", _log, "what each entry of a run's ledger holds")
    log.add_argument("--last", type=int, default=20, help="how many entries; 0 shows all [20]")
    diff = _parser(commands, "diff", _diff, "what changed in the parameters from one round to another")
    diff.add_argument("first", type=int, help="round; 0 is the bundle")
    diff.add_argument("second", type=int, nargs="?", help="round; the last if left out")
    verify = _parser(commands, "verify", _verify, "recompute every digest from the bundle and the ledger", nargs="?")
    verify.add_argument("--bundle", type=Path, help="folder of the run's bundle, if it has moved")
    verify.add_argument(
        "--tiles", metavar="ADDRESS", help="verify tiles (http(s) address or folder), which hold no run's name, not a store"
    )
    verify.add_argument("--key", metavar="HEX", help="public key that signs the tiles; the coordinator's log states it")
    rollback = _parser(commands, "rollback", _rollback, "take the parameters back, exactly; also while the run is served")
    rollback.add_argument("--to", type=int, required=True, metavar="ROUND", help="the round whose parameters come back; 0 is the bundle")
    compact = _parser(commands, "compact", _compact, "fold old entries into a checkpoint; digests and hash chain stay")
    compact.add_argument("--keep", type=int, required=True, metavar="N", help="last entries that stay whole")


def _parser(commands: argparse._SubParsersAction, name: str, command: Any, text: str, **run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("run", help="name of the run", **run)
    parser.add_argument("--store", type=Path, default=place("store"), help="[%(default)s]")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(command=command)
    return parser


def _opened(given: argparse.Namespace) -> tuple[Store, RunRow]:
    store = SqliteStore(given.store)
    return store, store.run(given.run)


def _log(given: argparse.Namespace) -> None:
    if given.last < 0:
        raise ConfigError(f"--last {given.last} must not be negative")
    rows = history.log(*_opened(given))[-given.last if given.last else 0 :]
    if given.json:
        print(json.dumps({"entries": rows}))
        return
    print(" entry  round  reports  chain             digest of the parameters")
    for row in rows:
        note = "  terms compacted" if row["compacted"] else ""
        note += f"  back to round {row['rolled_back_to']}" if row["rolled_back_to"] is not None else ""
        print(f"{row['entry']:6} {row['round']:6} {row['contributors']:8}  {row['chain'][:16]}  {(row['digest'] or '-')[:16]:16}{note}")


def _diff(given: argparse.Namespace) -> None:
    store, run = _opened(given)
    second = store.head(run.id)[0] if given.second is None else history.entry_at(store, run, given.second)
    rows = history.diff(store, run, replay.opened(run), history.entry_at(store, run, given.first), second)
    if given.json:
        print(json.dumps({"groups": rows}))
        return
    print("group  kind     values    changed  rms change  largest")
    for row in rows:
        print(f"{row['group']:5}  {row['kind']:4} {row['values']:10} {row['changed']:10}  {row['rms']:10.3e}  {row['largest']:.3e}")


def _verify(given: argparse.Namespace) -> None:
    if given.tiles:
        if given.run:
            raise ConfigError(f"--tiles {given.tiles} are verified without a store, so name no run ({given.run!r})")
        _tell_verified(_verified_tiles(given), f"the tiles at {given.tiles}", given.json)
        return
    if given.key or not given.run:
        raise ConfigError("--key is the key of tiles; give --tiles ADDRESS with it" if given.key else "name a run, or tiles with --tiles")
    store, run = _opened(given)
    _tell_verified(history.verify_run(store, run, replay.opened(run, given.bundle)), f"run {run.name!r}", given.json)


def _verified_tiles(given: argparse.Namespace) -> dict[str, Any]:
    if given.bundle is None or given.key is None:
        raise ConfigError("--tiles needs --bundle FOLDER and --key HEX")
    if not re.fullmatch("[0-9a-fA-F]{64}", given.key):
        raise ConfigError(f"--key {given.key!r} must be 64 hexadecimal digits; the coordinator's log states it")
    try:
        return {"tiles": given.tiles} | history.verify_tiles(Tiles(given.tiles), bytes.fromhex(given.key), open_bundle(given.bundle))
    except (TilesUnavailable, ValueError) as error:
        raise StorageError(str(error)) from None


def _tell_verified(found: dict[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    start = f"the checkpoint at entry {found['compacted']}" if found["compacted"] else "the bundle"
    print(f"{what}: from {start} to entry {found['entries']}, all terms fit the hash chain")
    print(f"{found['digests']} digests recomputed, all equal")
    print(f"digest {found['digest']}, chain {found['chain']}")


def _rollback(given: argparse.Namespace) -> None:
    store, run = _opened(given)
    entry = history.rollback(store, run, replay.opened(run), given.to)
    digest = (entry.digest or b"").hex()
    if given.json:
        print(json.dumps({"entry": entry.number, "rolled_back_to": given.to, "digest": digest}))
        return
    print(f"entry {entry.number} takes run {run.name!r} back to round {given.to}: digest {digest}")


def _compact(given: argparse.Namespace) -> None:
    if given.keep < 0:
        raise ConfigError(f"--keep {given.keep} must not be negative")
    if given.keep < 2 * TILE and Path(f"{given.store}.tiles-key").exists():
        raise ConfigError(f"--keep {given.keep} must be at least {2 * TILE} where tiles are written")
    store, run = _opened(given)
    dropped = history.compact_all_but(store, run, replay.opened(run), given.keep)
    print(
        json.dumps({"compacted": dropped}) if given.json else f"{dropped} entries folded; the ledger ends at entry {store.head(run.id)[0]}"
    )
