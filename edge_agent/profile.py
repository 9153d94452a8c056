"""What this device tells of itself when it asks for work: memory that is left, its own times, its line. Nothing of its owner."""

from dataclasses import replace

from edge_agent import memory
from edge_agent.config import AgentConfig
from zo.batches import Batch
from zo.catchup import replay_speed
from zo.engine import Engine
from zo.memory.engine import Device
from zo.messages import Profile
from zo.timing import stage_ns

FASTEST = 2**32 - 1  # bytes a second that a profile can state


class Profiler:
    """Measures once what stays as it is; `now` adds the memory. device: what memory is predicted with.

    How fast the line is nobody measures: it is what the owner lets catching up count on.
    """

    def __init__(self, engine: Engine, batch: Batch, config: AgentConfig, device: Device) -> None:
        self._manifest, self._config, self._device = engine.manifest, config, device
        self.measured = Profile(
            0,
            stage_ns(engine, batch),
            stage_ns(engine, batch, alone=True),
            round(replay_speed(engine.parameters)),
            round(min(config.link_speed, FASTEST)),
        )

    def now(self) -> Profile:
        """With the memory that is left now; without where the bundle does not state the model's dimensions: it cannot be planned."""
        if self._manifest.model is None:
            return self.measured
        return replace(self.measured, memory_mib=max(1, memory.left(self._manifest, self._config, self._device) >> 20))
