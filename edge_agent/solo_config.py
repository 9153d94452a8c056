"""Settings of training alone: flags, environment (EDGE_SOLO_...) and a TOML file."""

import dataclasses
from dataclasses import dataclass

from edge_agent.config import AgentConfig, PrefixSettings
from edge_agent.guest_config import Cpu, Heat, Memory, Power
from zo.config import setting
from zo.estimators import Grid
from zo.manifest import Precision
from zo.recipe import Algorithm, Probe, Rate, Split
from zo.seeds import MOST_ROUNDS

_AS_IN_A_FLEET = {field.name: setting(field.metadata["help"], field.default) for field in dataclasses.fields(AgentConfig)}


@dataclass(frozen=True)
class SoloConfig:
    """What the owner of a device decides who trains without a coordinator."""

    data: str = _AS_IN_A_FLEET["data"]
    bundle: str = setting("folder with the bundle to begin from")
    state: str = _AS_IN_A_FLEET["state"]
    rounds: int = setting("rounds until the local ledger is complete; a ledger that has fewer is gone on with", 100)
    precision: Precision | None = setting("base to compute with, of those that the bundle has; its default if left out", None)
    threads: int = _AS_IN_A_FLEET["threads"]
    max_rows: int = _AS_IN_A_FLEET["max_rows"]
    prefix: PrefixSettings = setting("", PrefixSettings())
    held_out_share: float = _AS_IN_A_FLEET["held_out_share"]
    held_out_most: int = _AS_IN_A_FLEET["held_out_most"]
    balanced: bool = _AS_IN_A_FLEET["balanced"]
    disk_bytes_per_day: float = _AS_IN_A_FLEET["disk_bytes_per_day"]
    memory: Memory = setting("", Memory())
    cpu: Cpu = setting("", Cpu())
    heat: Heat = setting("", Heat())
    power: Power = setting("", Power())
    windows: tuple[str, ...] = _AS_IN_A_FLEET["windows"]
    log2_levels: int = setting("losses are rounded to 2**-this nats", 14)
    clip: float = setting("half differences of losses are clipped at +- this many nats", 2.0)
    algorithm: Algorithm = setting(
        "'fedspzo' tries parts of the model apart where that is cheaper, and so does 'auto'; 'mezo' all of it at once", "auto"
    )
    probe: Probe = setting("", Probe())
    split: Split = setting("", Split())
    rate: Rate = setting("", Rate())

    def __post_init__(self) -> None:
        AgentConfig(
            self.data,
            threads=self.threads,
            max_rows=self.max_rows,
            held_out_share=self.held_out_share,
            held_out_most=self.held_out_most,
            disk_bytes_per_day=self.disk_bytes_per_day,
            windows=self.windows,
        )
        Grid(self.log2_levels, self.clip)
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise ValueError(f"rounds = {self.rounds} must be 1 to {MOST_ROUNDS}")
