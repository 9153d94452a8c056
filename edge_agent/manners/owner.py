"""The policies that the settings of a device's owner ask for, over the real sensors."""

from collections.abc import Callable

from edge_agent import sensors
from edge_agent.config import AgentConfig
from edge_agent.flash import DailyBudget, WriteBudget
from edge_agent.manners.policies import Flash, Heat, Hours, Others, Power, Throttling, Traffic
from edge_agent.manners.policy import Policy, seldom
from edge_agent.solo_config import SoloConfig
from edge_agent.windows import parse

EVERY = 2.0  # seconds between readings of slow sensors


def policies(
    config: AgentConfig | SoloConfig, flash: WriteBudget, needed: Callable[[], float], traffic: DailyBudget | None = None
) -> list[Policy]:
    """flash, needed: the write budget, and bytes of the next file. traffic: where the line is metered."""
    made: list[Policy] = [Heat(seldom(sensors.hottest, EVERY), config.heat.pause, config.heat.resume), Flash(flash, needed)]
    if config.heat.throttled:
        made.append(Throttling(seldom(sensors.throttle, EVERY)))
    if config.power.battery:
        made.append(Power(seldom(sensors.battery, EVERY), config.power.battery))
    if config.cpu.others < 1:
        made.append(Others(seldom(sensors.others(), EVERY), config.cpu.others))
    if config.windows:
        made.append(Hours([parse(each) for each in config.windows]))
    if traffic:
        made.append(Traffic(traffic))
    return made
