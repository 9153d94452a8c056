"""The memory budget, planned: whether a base fits before it is downloaded, and how many rows a run may have."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.config import AgentConfig
from edge_agent.governor import Governor
from edge_agent.guest import Guest
from edge_agent.pressure import budget, gauges
from edge_agent.processor import processor
from edge_agent.solo_config import SoloConfig
from edge_agent.state import State
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DoesNotFit
from zo.manifest import Manifest, Precision
from zo.memory import Need, need, process
from zo.memory import calibration as memory_calibration
from zo.memory.engine import SESSIONS, Device
from zo.memory.fitting import largest
from zo.memory.units import told

log = logging.getLogger(__name__)

AMPLE = 4  # times what is predicted: then nothing need be measured, which takes some memory of its own


@dataclass(frozen=True)
class Plan:
    """What is predicted of a bundle on this device. allowed: bytes up to the soft line. rows: of a run, so that it stays below."""

    device: Device
    allowed: float
    rows: int
    need: Need


def here() -> Device:
    """This process as it is before any session is made."""
    return Device(max(Device().imports, process.resident() + SESSIONS))


@dataclass(frozen=True)
class Room:
    """Bytes that may be held: budget at most, and up to the soft line, with which is planned."""

    budget: float
    allowed: float


def room(config: AgentConfig | SoloConfig) -> Room:
    """What the settings, this machine and its cgroups leave."""
    most = budget(config.memory)
    return Room(most, config.memory.soft * most)


def left(manifest: Manifest, config: AgentConfig, device: Device) -> int:
    """Bytes that the model may take now: up to the soft line of whatever is nearest to its own, less the process itself and the prefix."""
    lines = [line for line in (each() for each in gauges(config.memory)) if line and not line.name.startswith("stalls")]
    most = process.resident() + min(line.soft - line.used for line in lines)
    return max(0, int(most) - device.imports - _prefix(manifest, config))


def _prefix(manifest: Manifest, config: AgentConfig | SoloConfig) -> int:
    """Bytes that outputs of the stages below every trained group may take."""
    return int(config.prefix.memory) if manifest.prefix else 0


def _some_blocks(manifest: Manifest, config: AgentConfig | SoloConfig) -> bool:
    """Whether not all blocks need be held in float32: a device that trains alone holds all of them."""
    return bool(manifest.optional) and isinstance(config, AgentConfig)


def predicted(manifest: Manifest, rows: int, config: AgentConfig | SoloConfig, device: Device, active: int = 1, rank: int = 0) -> Need:
    """With runs of so many rows of the longest texts. active: blocks that are held in float32, where others need not be. rank: of the
    adapters; 0 is the largest.
    """
    tokens, some = manifest.task.max_tokens, active if _some_blocks(manifest, config) else None
    pairs = max(1, rows // (2 * tokens))
    return need(manifest, rows, tokens, device, _prefix(manifest, config), pairs=pairs, active=some, rank=rank)


def most_rows(manifest: Manifest, config: AgentConfig | SoloConfig, device: Device, active: int = 1, rank: int = 0) -> int:
    """Of a run, so that it stays below the soft line: as the settings say, or fewer; 0 where even few do not fit."""
    allowed = room(config).allowed
    return largest(lambda rows: predicted(manifest, rows, config, device, active, rank).total <= allowed, config.max_rows)


def fitting(manifest: Manifest, among: Sequence[Precision], config: AgentConfig | SoloConfig) -> list[Precision]:
    """Those of the bases that fit, by what the manifest alone says. DoesNotFit where none does, with the numbers and what would."""
    if manifest.model is None:
        log.warning("bundle %r does not state the model's dimensions, so memory is watched, but not planned", manifest.name)
        return list(among)
    device, allowed = here(), room(config).allowed
    needs = {name: _least(manifest.at(name), config, device) for name in manifest.bases}
    found = [name for name in among if needs[name].total <= allowed]
    for name in among:
        if name not in found:
            log.info("base %s needs %s, and %s are allowed", name, told(needs[name].total), told(allowed))
    if not found:
        raise DoesNotFit(_refusal(manifest, among, needs, config))
    return found


def plan(manifest: Manifest, config: AgentConfig | SoloConfig, device: Device, active: int = 1, rank: int = 0) -> Plan:
    """Rows that stay below the soft line: as the settings say, or fewer. DoesNotFit where one example with its two branches does not."""
    allowed, least = room(config).allowed, 2 * manifest.task.max_tokens
    if predicted(manifest, least, config, device, active, rank).total > allowed:
        needs = {manifest.precision: _least(manifest, config, device, active)}
        raise DoesNotFit(_refusal(manifest, [manifest.precision], needs, config))
    rows = most_rows(manifest, config, device, active, rank)
    if rows < config.max_rows:
        log.info("runs of at most %d rows instead of %d, so that they fit the %s allowed", rows, config.max_rows, told(allowed))
    return Plan(device, allowed, rows, predicted(manifest, max(rows, least), config, device, active, rank))


def calibrated(
    engine: Engine, bundle: Bundle, config: AgentConfig | SoloConfig, state: State, go_on: Callable[[], None], usual: Device
) -> Device:
    """What this device needs for the bundle, where memory is not ample: measured on first use, then as the state folder says.

    usual: the process before the engine was made.
    """
    key = f"{bundle.digest.hex()} {bundle.manifest.precision} {processor()} {config.threads}"
    kept = state.memory()
    if kept.get("key") == key:
        return Device(int(kept["imports"]), float(kept["hidden"]))
    allowed = room(config).allowed
    if AMPLE * predicted(bundle.manifest, config.max_rows, config, usual).total < allowed:
        return usual

    def fits(rows: int, tokens: int) -> bool:
        return rows <= config.max_rows and need(bundle.manifest, rows, tokens, usual).total <= allowed

    points = memory_calibration.measure(engine, bundle.folder / bundle.manifest.base.file, fits, go_on)
    engine.trim()
    if not points:
        return usual
    device = memory_calibration.fit(points, bundle.manifest)
    log.info(
        "memory of %d shapes measured: %s before any weights, %.1f hidden states a row",
        len(points),
        told(device.imports),
        device.hidden or 0,
    )
    state.save_memory({"key": key, **dataclasses.asdict(device)})
    return device


def govern(
    guest: Guest,
    engine: Engine,
    bundle: Bundle,
    config: AgentConfig | SoloConfig,
    state: State,
    before: Device,
    active: int = 1,
) -> Plan | None:
    """Calibrate and plan, and let the guest keep the engine within the budget from here on. active: as of `predicted`. before: the
    process before the engine was made. Where not all blocks are active, what they take is not measured.

    DoesNotFit as `plan`. None where the bundle does not say what could be planned.
    """
    if bundle.manifest.model is None:
        guest.govern(engine, Governor(config.max_rows, gauges(config.memory), engine.trim))
        return None
    device = before if _some_blocks(bundle.manifest, config) else calibrated(engine, bundle, config, state, guest.go_on, before)
    made = plan(bundle.manifest, config, device, active, engine.rank)

    def growth(rows: int) -> float:
        return predicted(bundle.manifest, rows, config, made.device, active, engine.rank).activations

    guest.govern(engine, Governor(made.rows, gauges(config.memory), engine.trim, growth))
    return made


def _least(manifest: Manifest, config: AgentConfig | SoloConfig, device: Device, active: int = 1) -> Need:
    """With the smallest runs, and the smallest adapters that the settings allow."""
    rank = 0
    if isinstance(config, AgentConfig) and manifest.ranks:
        rank = manifest.ranks[0] if config.rank == "auto" else config.rank
    return predicted(manifest, 2 * manifest.task.max_tokens, config, device, active, rank)


def _refusal(manifest: Manifest, among: Sequence[Precision], needs: dict[Precision, Need], config: AgentConfig | SoloConfig) -> str:
    """The numbers of the base that comes nearest, and the nearest setting that fits."""
    allowed = room(config).allowed
    best = min(among, key=lambda name: needs[name].total)
    terms = ", ".join(f"{name} {told(size)}" for name, size in dataclasses.asdict(needs[best]).items() if size >= 1e5)
    others = [name for name in needs if name not in among and needs[name].total <= allowed]
    if others:
        way = f"--precision {min(others, key=lambda name: needs[name].total)} fits"
    elif needs[best].total - needs[best].caches <= allowed:
        way = "--prefix.memory 0 fits"
    else:
        wanted = -(-int(needs[best].total / config.memory.soft) // 1_000_000)
        way = f"the nearest that fits is --memory.budget {wanted}MB, if this machine, its cgroup and --memory.leave allow it"
    return f"bundle {manifest.name!r} with base {best} needs {told(needs[best].total)} ({terms}), and {told(allowed)} are allowed; {way}"
