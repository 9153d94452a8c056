"""The engine, within what the owner of the device allows."""

import logging

from edge_agent.config import AgentConfig, PrefixSettings
from edge_agent.solo_config import SoloConfig
from edge_agent.state import State
from zo.bundle import Bundle
from zo.engine import Engine, Prefix
from zo.parameters import Parameters

log = logging.getLogger(__name__)
PREFIX = "prefix"


def engine(config: AgentConfig | SoloConfig, bundle: Bundle, parameters: Parameters, state: State) -> Engine:
    """An engine over the parameters. A prefix is kept only where the run trains nothing in the lowest stages."""
    kept = _prefix(config.prefix, state) if bundle.manifest.prefix else None
    return Engine(bundle, parameters, threads=config.threads, max_rows=config.max_rows, prefix=kept)


def _prefix(settings: PrefixSettings, state: State) -> Prefix | None:
    if settings.disk and state.budget.take(int(settings.disk)):
        try:
            return Prefix(settings.disk, float16=settings.float16, file=state.folder / PREFIX)
        except OSError as error:
            log.warning("%s: %s; outputs of the untrained stages are kept in memory", state.folder / PREFIX, error.strerror)
    elif settings.disk:
        log.warning("prefix.disk = %.0f is more than may be written now; outputs of the untrained stages are kept in memory", settings.disk)
    return Prefix(settings.memory, float16=settings.float16) if settings.memory else None
