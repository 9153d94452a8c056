"""Was a ledger kept as promised? What the devices noted is compared with it, and every entry is computed again from what they sent."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from coordinator import history
from coordinator.config import RunConfig
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from zo import config, wire
from zo.bundle import open_bundle
from zo.errors import StorageError
from zo.ledger import Entry, short
from zo.messages import Report


class Notes:
    """All that the devices said and heard: reports sent, by round and device; reports accepted; entries heard."""

    def __init__(self, paths: list[Path]) -> None:
        self.sent: dict[tuple[int, int], list[Report]] = {}
        self.accepted: set[tuple[int, int]] = set()
        self.heard: set[tuple[int, int]] = set()
        present = (path for path in paths if path.exists())  # a device may have come to the end by a checkpoint alone
        for fact in (json.loads(line) for path in present for line in path.read_text().splitlines()):
            if "sent" in fact:
                self._add(wire.decoder(Report)(bytes.fromhex(fact["sent"])))
            elif "verdict" in fact:
                if fact["verdict"] in ("ACCEPTED", "DUPLICATE"):
                    self.accepted.add((fact["round"], fact["device"]))
            else:
                self.heard.add((fact["entry"], fact["terms"]))

    def _add(self, report: Report) -> None:
        known = self.sent.setdefault((report.round, report.device), [])
        if not any(np.array_equal(report.scalars, other.scalars) and report.plan == other.plan for other in known):
            known.append(report)


def audit(path: Path, settings: dict[str, str], notes: list[Path], folder: Path) -> dict[str, Any]:
    """Figures: all are 0 where every promise was kept.

    lost_commits: entries that a device heard of and the ledger does not have. lost_reports: accepted, and not in the
    entry of their round. double_counted: entries that no set of one report a device, as sent, gives.
    digest_mismatches: digests of the ledger, or of a device at the end, that are not those of the parameters.
    """
    store = SqliteStore(path)
    run, heard = store.runs()[0], Notes(notes)
    bundle = open_bundle(Path(settings["bundle"]))
    entries = store.entries(run.id)
    chosen: RunConfig = config.from_texts(RunConfig, settings | {"rounds": str(len(entries))})
    rounds = Rounds(store, run, bundle, chosen)
    have = {(entry.number, short(entry.header.terms_digest)) for entry in entries}
    summaries, sets = store.summaries(run.id), {}
    for place, entry in enumerate(entries):
        if entry.contributors:  # else it leads back to an entry before
            rounds.course.begin(summaries[:place])  # rates go by the entries before
            sets[entry.round] = contributors(entry, heard, rounds)
    counted = {(number, device) for number, devices in sets.items() for device in devices or ()}
    return {
        "commits": len(entries),
        "reports": sum(entry.contributors for entry in entries),
        "lost_commits": len(heard.heard - have),
        "lost_reports": len({key for key in heard.accepted if sets.get(key[0]) is not None} - counted),
        "double_counted": sum(devices is None for devices in sets.values()),
        "digest_mismatches": _mismatches(store, rounds, folder),
        "diverged": sum(kind == "diverged" for _, kind, _ in store.events(run.id)),
    }


def contributors(entry: Entry, notes: Notes, rounds: Rounds) -> tuple[int, ...] | None:
    """The devices whose reports, one each, give the terms of an entry; None where there are none."""
    sent = {device: reports for (number, device), reports in notes.sent.items() if number == entry.round}
    for devices in itertools.combinations(sorted(sent), entry.contributors):
        for reports in itertools.product(*(sent[device] for device in devices)):
            if rounds.aggregator.terms(rounds.aggregator.answers(reports)) == entry.terms:
                return devices
    return None


def _mismatches(store: SqliteStore, rounds: Rounds, folder: Path) -> int:
    """Digests that are wrong: those stated in the ledger, and those that the agents ended with."""
    try:
        history.verify_run(store, rounds.run, rounds.bundle)
    except StorageError:
        return 1
    ended = [json.loads(path.read_text())["digest"] for path in folder.glob("agent*/status.json")]
    return sum(digest != rounds.ledger.digest().hex() for digest in ended)
