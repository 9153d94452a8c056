"""Settings of an agent: agent.toml, flags and environment (EDGE_AGENT_...)."""

import math
from dataclasses import dataclass
from typing import Literal

from edge_agent.guest_config import WINDOWS, Cpu, Heat, Memory, Network, Power, check_windows
from zo.config import MOST_THREADS, setting
from zo.errors import ConfigError
from zo.manifest import Precision
from zo.recipe import Auto
from zo.token import is_address


@dataclass(frozen=True)
class PrefixSettings:
    """Where the outputs of stages that a run never trains are kept, so that they run once an example and not once a batch."""

    memory: float = setting("most bytes of memory for outputs of the stages that a run never trains", 32e6)
    disk: float = setting("instead, most bytes of a file in the state folder, within disk_bytes_per_day", 0.0)
    float16: bool = setting("keep them in half precision: half the room, a relative error of 2**-11", False)

    def __post_init__(self) -> None:
        if not (0 <= self.memory < math.inf and 0 <= self.disk < math.inf):
            raise ValueError("memory and disk must be finite, and not negative")


@dataclass(frozen=True)
class Privacy:
    """Noise on what is reported, so that it hardly tells of the examples (docs/security.md says what that does and does not protect)."""

    clip: float = setting("the half differences of a report are cut to this length together, in nats; 0 leaves them as they are", 0.0)
    noise: float = setting("standard deviation of the noise on each of them, in clips; more hides more, and teaches less", 0.0)
    epsilon: float = setting("budget of this device, over all its reports: it stops before it spends more; 0 only counts", 0.0)
    delta: float = setting("chance that the promise of epsilon does not hold", 1e-5)

    def __post_init__(self) -> None:
        if not (0 <= self.clip < math.inf and 0 <= self.noise < math.inf and 0 <= self.epsilon < math.inf):
            raise ValueError("clip, noise and epsilon must be finite, and not negative")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta = {self.delta} must be between 0 and 1")
        if self.noise and not self.clip:
            raise ValueError(f"noise = {self.noise} is in clips; give clip as well")
        if self.epsilon and not self.noise:
            raise ValueError(f"epsilon = {self.epsilon} needs noise; without it nothing is promised")


def refuse_threads(threads: int) -> None:
    """ConfigError where there are none, or so many that starting them is never over."""
    if not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"--threads {threads} must be 1 to {MOST_THREADS}")


@dataclass(frozen=True)
class AgentConfig:
    """What the owner of the device decides."""

    data: str = setting("folder of *.jsonl files (or one file) that never leaves this device")
    coordinator: str = setting("address and port of the coordinator; the one it joined if left out, or 127.0.0.1:7600 in plaintext", "")
    state: str = setting("folder that the agent may write to; made if it does not exist", "edge-agent-state")
    bundle: str = setting("folder with the run's bundle, if this device has it already; downloaded into the state folder if left out", "")
    precision: Literal["auto", Precision] = setting(
        "base to compute with, of those that the bundle has; auto measures which gives most signal a second here, if it has several",
        "auto",
    )
    rank: int | Auto = setting(
        "of the adapters, where the bundle has several: a smaller one takes less memory; auto is the largest that memory bears", "auto"
    )
    insecure_loopback: bool = setting("talk plaintext, without certificates, to a loopback address only", False)
    wait_to_join: bool = setting("where this device has not joined a fleet yet, wait until 'edge-agent join' has let it in", False)
    threads: int = setting("processor threads for the model", 1)
    max_rows: int = setting("most rows (branches x examples x tokens) in one run of the model; fewer where memory asks for it", 384)
    prefix: PrefixSettings = setting("", PrefixSettings())
    held_out_share: float = setting("share of the examples kept for measuring, never trained on", 0.1)
    held_out_most: int = setting("most examples kept for measuring", 32)
    balanced: bool = setting("draw all classes equally often, however rare", True)
    tiles: str = setting("http(s) address or folder of the run's tiles; catching up begins there, and spares the coordinator", "")
    link_speed: float = setting("bytes a second that catching up may count on; a low value spares a metered line", 125_000.0)
    refresh: int = setting("entries after which blocks that plans leave inactive are made anew, where all weights are trained", 16)
    disk_bytes_per_day: float = setting("most bytes written to the state folder in 24 hours, the bundle not counted", 50e6)
    bundle_bytes: float = setting("most bytes of a bundle that is downloaded; what is larger is refused", 4e9)
    audit_bytes: float = setting("most bytes for the record of all that was sent, which 'edge-agent audit' prints; 0 keeps none", 64e6)
    dp: Privacy = setting("", Privacy())
    memory: Memory = setting("", Memory())
    cpu: Cpu = setting("", Cpu())
    heat: Heat = setting("", Heat())
    power: Power = setting("", Power())
    network: Network = setting("", Network())
    windows: tuple[str, ...] = setting(WINDOWS, ())
    patience: float = setting("seconds to keep trying a coordinator that is not there; 0 tries for ever", 0.0)

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads = {self.threads} must be 1 to {MOST_THREADS}")
        if self.max_rows < 1 or self.refresh < 1:
            raise ValueError("max_rows and refresh must be at least 1")
        if self.coordinator and not is_address(self.coordinator):
            raise ValueError(f"coordinator = {self.coordinator!r} must be host:port or [address]:port, with a port from 1 to 65535")
        if not 0 <= self.patience < math.inf:
            raise ValueError(f"patience = {self.patience} must be finite, and not negative")
        if self.rank != "auto" and self.rank < 1:
            raise ValueError(f"rank = {self.rank} must be at least 1, or 'auto'")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share = {self.held_out_share} must be from 0 to below 1")
        if self.audit_bytes and not 1e4 <= self.audit_bytes < math.inf:
            raise ValueError(f"audit_bytes = {self.audit_bytes} must be 0, or at least 10000")
        scheme, mark, _ = self.tiles.partition("://")
        if mark and scheme not in ("http", "https"):
            raise ValueError(f"tiles = {self.tiles!r} must be an http:// or https:// address, or a folder")
        if self.link_speed <= 0 or not 0 <= self.disk_bytes_per_day < math.inf:
            raise ValueError("link_speed must be positive, disk_bytes_per_day finite and not negative")
        if self.held_out_most < 0:
            raise ValueError(f"held_out_most = {self.held_out_most} must not be negative")
        check_windows(self.windows)


@dataclass(frozen=True)
class JoinConfig(AgentConfig):
    """As of an agent, which may have no examples yet."""

    data: str = setting("folder of *.jsonl files (or one file) to start working with at once; without it, the device joins only", "")
