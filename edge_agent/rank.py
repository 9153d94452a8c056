"""The rank of the adapters that this device bears, where the bundle has several (docs/ranks.md)."""

import logging

from edge_agent import memory
from edge_agent.config import AgentConfig
from zo import ranks
from zo.errors import ConfigError
from zo.manifest import Manifest
from zo.memory.engine import Device

log = logging.getLogger(__name__)

WORTH = 0.9  # of the rows of a run that the smallest rank allows: a larger rank must leave as many


def bearable(manifest: Manifest, config: AgentConfig, device: Device) -> int:
    """As the settings say; else the largest with which runs are nearly as large as with the smallest, in the memory allowed just now.

    0 where the bundle has one rank alone, or does not say what could be predicted. ConfigError where it has no such rank.
    """
    if config.rank != "auto":
        if not manifest.ranks:
            raise ConfigError(f"bundle {manifest.name!r} has adapters of a single rank, so there is none to choose; leave out --rank")
        ranks.refuse(manifest, config.rank)
        return config.rank
    if not manifest.ranks or manifest.model is None:
        return 0
    smallest, *others = manifest.ranks
    enough = WORTH * memory.most_rows(manifest, config, device, rank=smallest)
    return max((rank for rank in others if enough and memory.most_rows(manifest, config, device, rank=rank) >= enough), default=smallest)
