"""Which blocks each device of a run trains, round by round (coordinator.allocation), by what the devices say of themselves."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coordinator.allocation import Allocation, Asked, Asking, allocate, blocks, by_block, turn
from coordinator.config import RunConfig
from coordinator.planner import trained
from zo.manifest import Manifest
from zo.recipe import directions
from zo.structure import from_plain

log = logging.getLogger(__name__)

GONE = 120.0  # seconds (and two deadlines) after which a device that has not asked is gone
FALLEN, GROWN = 0.97, 1.25  # of the memory that was planned with: between them it counts as the same
SLOWER = 1.5  # times what its stages took: less counts as the same


class Blocks:
    """The present allocation. It is made anew in the first request of a round, where devices have come, gone or changed.

    A device that comes or changes in mid-round gets a part as if it were alone, by turns; so the next round's is the fleet's again.
    summaries: of the entries so far; their `news` tell of devices that have not asked since a restart. note: for what a person should
    know. too_small: devices that get nothing, and why.
    """

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        summaries: Sequence[dict[str, Any]],
        note: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manifest, self._slack, self._note, self._clock = manifest, config.blocks_slack, note, clock
        self._compared = config.aggregation != "mean"
        self._free = config.blocks == "all" or self._compared or config.rate.body == 0 or not blocks(manifest)
        self._gone = max(GONE, 2 * config.round.deadline)
        self.asked = asked(config)
        self._trained, self._parked = trained(config, manifest), dict[int, tuple[tuple[int, ...], int]]()
        self._groups, self._head = blocks(manifest), tuple(group.id for group in manifest.groups if group.kind != "body")
        self._known = known(summaries)
        self._seen = dict.fromkeys(self._known, clock())
        self._planned, self._allocation, self._round, self._kept = dict[int, Asking](), Allocation({}, {}), 0, dict(self._known)
        self.too_small, self._uncovered = dict[int, str](), tuple[int, ...]()

    def among(self, device: int, asking: Asking, round_number: int, slopes: Mapping[int, float]) -> tuple[int, ...] | None:
        """Groups that a device is to try in a round; empty: all of them. None where it can take no block.

        Without those that it has parked, unless that is all that there is. slopes: mean squared ones by group, as far as they are
        known. ConfigError where the bundle has no such base.
        """
        tried = self._allotted(device, asking, round_number, slopes)
        return tried if tried is None or self._compared else self._heard(device, asking.profile.parked, tried, round_number)

    def _heard(self, device: int, parked: tuple[int, ...], tried: tuple[int, ...], round_number: int) -> tuple[int, ...]:
        noted, at = self._parked.get(device, ((), 0))
        if parked != noted and at != round_number:  # told once a round, however often it asks
            self._parked[device] = parked, round_number
            kinds = {group.kind for group in self._manifest.groups if group.id in parked}
            why = f"leaves out the {' and the '.join(sorted(kinds))}: probes there are mostly noise" if kinds else "tries all again"
            self._note("parked", f"device {device} {why}")
        left = tuple(group for group in tried or self._trained if group not in parked)
        return left if parked and any(group in self._trained for group in left) else tried

    def _allotted(self, device: int, asking: Asking, round_number: int, slopes: Mapping[int, float]) -> tuple[int, ...] | None:
        self._seen[device] = self._clock()
        if self._free:
            return ()
        asking = self._checked(asking)
        if device not in self._known or _differs(self._known[device], asking):
            self._known[device] = asking
        self._solve(round_number)
        made, number = self._allocation, round_number
        if self._planned.get(device) != self._known[device]:
            made, number = allocate({device: self._known[device]}, self._manifest, self.asked, self._slack), round_number + device
            self.too_small.pop(device, None)
            self.too_small |= made.too_small
        if device not in made.shares:
            return None
        tried = made.shares[device].blocks[number % made.window]
        if made.moves:
            tried = turn(by_block(self._groups, slopes), len(tried), round_number, device)
        if len(tried) == len(self._groups):
            return ()
        return tuple(sorted((*(group for block in tried for group in self._groups[block]), *self._head)))

    def news(self) -> dict[str, Any]:
        """What a round's summary keeps of devices that have come, gone (None) or changed: for restarts, and `edge-coordinator plan`."""
        changed = [device for device in sorted(self._known.keys() | self._kept.keys()) if self._known.get(device) != self._kept.get(device)]
        if not changed:
            return {}
        rows = {str(each): dataclasses.asdict(self._known[each]) if each in self._known else None for each in changed}
        return {"profiles": rows, "asked": dataclasses.asdict(self.asked), "slack": self._slack}

    def keep(self) -> None:
        """The news are kept."""
        self._kept = dict(self._known)

    def _checked(self, asking: Asking) -> Asking:
        """Without times that are not of this bundle's stages. ConfigError where it has no such base."""
        profile, stages = asking.profile, len(self._manifest.at(asking.precision or self._manifest.precision).stages)
        if len(profile.stage_ns) == len(profile.single_ns) == stages:
            return asking
        return dataclasses.replace(asking, profile=dataclasses.replace(profile, stage_ns=(), single_ns=()))

    def _solve(self, round_number: int) -> None:
        """Once a round at most, and only where something has changed."""
        if self._round == round_number:
            return
        self._round, now = round_number, self._clock()
        self._seen = {device: at for device, at in self._seen.items() if now - at < self._gone}
        self._known = {device: asking for device, asking in self._known.items() if device in self._seen}
        if self._planned == self._known:
            return
        self._planned = dict(self._known)
        self._allocation = allocate(self._planned, self._manifest, self.asked, self._slack)
        self._tell()

    def _tell(self) -> None:
        made, before, count = self._allocation, self._uncovered, len(self._groups)
        for device, why in made.too_small.items():
            if device not in self.too_small:
                self._note("too small", f"device {device} gets no block: {why}")
        self.too_small = dict(made.too_small)
        self._uncovered = made.uncovered if made.shares else ()
        if self._uncovered and self._uncovered != before:
            self._note("blocks", f"blocks {list(made.uncovered)} are trained by no device: none is fast enough for them")
        if any(share.active < count for share in made.shares.values()):
            held = sorted(share.active for share in made.shares.values())
            log.info("%d devices train %d to %d of %d blocks each, all in %d rounds", len(held), held[0], held[-1], count, made.window)


def asked(config: RunConfig) -> Asked:
    """What the rounds of a run ask of a device."""
    count = directions(config.algorithm, config.probe)
    return Asked(config.probe.examples, count, config.round.goal, config.round.deadline)


def known(summaries: Sequence[dict[str, Any]]) -> dict[int, Asking]:
    """The devices that summaries, oldest first, tell of."""
    rows: dict[str, Any] = {}
    for each in summaries:
        rows |= each.get("profiles", {})
    return {int(device): from_plain(Asking, _listed(row)) for device, row in rows.items() if row}


def _listed(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON would have it, whether or not it has been JSON."""
    profile = {name: list(value) if isinstance(value, tuple) else value for name, value in row["profile"].items()}
    return row | {"profile": profile}


def _differs(before: Asking, after: Asking) -> bool:
    """Whether a device can do other things than it was planned with."""
    memory = (before.profile.memory_mib, after.profile.memory_mib)
    if before.precision != after.precision or (memory[0] > 0) != (memory[1] > 0):
        return True
    if not FALLEN * memory[0] <= memory[1] <= GROWN * memory[0]:
        return True
    slow, fast = sorted(max(1, sum(each.profile.stage_ns)) for each in (before, after))[::-1]
    return slow > SLOWER * fast
