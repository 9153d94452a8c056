"""Which base of a bundle this device computes with: measured on its own processor, by signal per second (DESIGN section 5)."""

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edge_agent import memory
from edge_agent.config import AgentConfig
from edge_agent.processor import processor
from edge_agent.state import State
from zo.bundle import Bundle, open_bundle, read_manifest, verify
from zo.engine import Engine
from zo.manifest import PRECISIONS, Manifest, Precision
from zo.planning import kinds
from zo.timing import alternating, probe_pair, random_batch, signal_per_second

log = logging.getLogger(__name__)

SHAPE = (8, 32)  # examples x tokens of the probes that are timed; fewer tokens where the task has fewer
REPEATS = 7
SCRATCH = "comparing"  # in the state folder


class Chooser:
    """Chooses the base that the settings name or, of several, the one with most signal per second on this processor.

    state: keeps the figures, so that a restart need not measure again. go_on: called between runs of the model; what it
    raises ends the comparison. `signal`: by precision, what was compared for the last choice.
    """

    def __init__(self, config: AgentConfig, state: State, go_on: Callable[[], None]) -> None:
        self._config, self._state, self._go_on = config, state, go_on
        self._compared = state.comparison()
        self.signal: dict[Precision, float] = {}

    def choose(
        self, folder: Path, manifest: Manifest, among: Sequence[Precision], fetch: Callable[[Iterable[str]], None] = lambda _: None
    ) -> Precision:
        """The base to use. ConfigError where the bundle has none of the name in the settings, DoesNotFit where memory is too small.

        folder: of the bundle; `fetch` sees to it that files of these names are there. among: the bases there are to choose from.
        """
        if self._config.precision != "auto":
            among = [manifest.at(self._config.precision).precision]
        among = memory.fitting(manifest, among, self._config)
        if len(among) == 1:
            return among[0]
        if manifest.trainable == "full":  # what a plan leaves inactive is in few bits only where it has to be
            return min(among, key=PRECISIONS.index)
        key = f"{Bundle(folder, manifest).digest.hex()} {processor()} {self._config.threads} {self._config.max_rows}"
        if self._compared.get("key") != key or self._compared["signal"].keys() != set(among):
            self._compared = {"key": key, "signal": self._compare(folder, manifest, among, fetch)}
            self._state.save_comparison(self._compared)
        self.signal = self._compared["signal"]
        return max(among, key=lambda precision: self.signal[precision])

    def _compare(
        self, folder: Path, manifest: Manifest, among: Sequence[Precision], fetch: Callable[[Iterable[str]], None]
    ) -> dict[Precision, float]:
        """Signal per second by precision; the log says how it comes about."""
        log.info("comparing %d bases on this processor; that needs none of their weights", len(among))
        bases = {precision: manifest.at(precision) for precision in among}
        small = {name for base in bases.values() for name in base.needed if name != base.base.file}
        fetch(sorted(small))
        verify(folder, manifest, small)
        rows = {name: (base.calibrated(kinds(base)[0]).correlation, self._milliseconds(folder, base)) for name, base in bases.items()}
        signal = {precision: round(signal_per_second(*row), 2) for precision, row in rows.items()}
        best = max(signal, key=lambda precision: signal[precision])
        log.info("base   correlation  ms a probe pair  signal a second")
        for precision, (correlation, taken) in rows.items():
            mark = "*" if precision == best else ""
            log.info("%-6s %11.3f %16.1f %16.2f%s", precision, correlation, taken, signal[precision], mark)
        log.info("computing with %s: its probes say most of the exact slope (squared correlation) a second on this processor", best)
        return signal

    def _milliseconds(self, folder: Path, manifest: Manifest) -> float:
        """Median of a pair of probes with zeros for weights, in a file that takes no room: how long they take does not depend on them."""
        scratch = self._state.folder / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            for stage in manifest.stages:
                shutil.copyfile(folder / stage.file, scratch / stage.file)
            with (scratch / manifest.base.file).open("wb") as file:
                file.truncate(manifest.base.size)
            parameters, config = Bundle(folder, manifest).parameters(self._config.threads), self._config
            engine = Engine(Bundle(scratch, manifest), parameters, threads=config.threads, max_rows=config.max_rows)
            batch = random_batch(manifest.task, 1, SHAPE[0], min(SHAPE[1], manifest.task.max_tokens))
            return alternating([probe_pair(engine, batch, self._go_on)], REPEATS)[0]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def held(folder: Path, manifest: Manifest) -> list[Precision]:
    """The bases whose files are all in a folder."""
    return [precision for precision in manifest.bases if all((folder / name).is_file() for name in manifest.at(precision).needed)]


def open_held(folder: Path, precision: Precision | None) -> Bundle:
    """A bundle at the base named; else at its default one or, where another was downloaded, at that."""
    if precision is None:
        manifest = read_manifest(folder)
        here = held(folder, manifest)
        precision = manifest.precision if manifest.precision in here or not here else here[0]
    return open_bundle(folder, precision)
