"""What the demo shows: progress, the table at the end, the plot, and the exported model at work."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from zo.batches import collate, encode
from zo.engine import run_model
from zo.examples import Example
from zo.manifest import Task

SENTENCES = 6
SHOWN = 60  # characters of each
AGENTS_SHOWN = 4  # with their memory; of more, the least and the most


class Progress:
    """One line that is renewed on a terminal; in a log, a line for every tenth of the rounds."""

    def __init__(self, rounds: int) -> None:
        self._rounds, self._printed, self._terminal = rounds, -1, sys.stdout.isatty()

    def update(
        self,
        summaries: list[dict[str, Any]],
        validation: dict[int, dict[str, Any]],
        memory: dict[str, int],
        up: int,
        down: int,
        last: bool = False,
    ) -> None:
        """Show where the run stands. memory: MiB by agent. up, down: bytes."""
        done = len(summaries)
        tenth = done * 10 // self._rounds
        if not (self._terminal or last or tenth > self._printed):
            return
        self._printed = tenth
        held_out = next((s["held_out"] for s in reversed(summaries) if s["held_out"] is not None), None)
        entry = max(validation, default=None)
        parts = [f"round {done:3}/{self._rounds}", f"own loss {held_out:.3f}" if held_out is not None else "own loss   -  "]
        if entry is not None:
            found = validation[entry]
            parts.append(f"validation loss {found['loss']:.3f}, balanced accuracy {found['balanced_accuracy']:.3f}")
        parts.append(f"up {up / 1e3:.0f} kB, down {down / 1e3:.0f} kB")
        if memory:
            several = list(memory.values()) if len(memory) <= AGENTS_SHOWN else [min(memory.values()), max(memory.values())]
            parts.append(f"MiB an agent {(' ' if len(memory) <= AGENTS_SHOWN else '-').join(map(str, several))}")
        line = " | ".join(parts)
        if self._terminal and not last:
            line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}" if self._terminal and not last else line, end="" if self._terminal and not last else "\n", flush=True)


def table(figures: dict[str, Any]) -> str:
    """Before and after on the test file, and what it took."""
    rows = [("on the test file", "before", "after")]
    before, after = figures["before"], figures["after"]
    rows += [(key.replace("_", " "), f"{before[key]:.4f}", f"{after[key]:.4f}") for key in ("loss", "accuracy", "balanced_accuracy")]
    lines = ["", *(f"{name:20} {left:>8} {right:>8}" for name, left, right in rows), ""]
    lines.append(f"{figures['rounds']} rounds, {figures['probes']} probes, {figures['seconds']:.0f} s of training")
    lines.append(
        f"{figures['scalars_per_report']:.0f} scalars and {figures['bytes_up_per_report']:.0f} bytes up a report, HTTP/2 frames included"
    )
    lines.append(f"peak memory of an agent: {figures['agent_peak_rss_mb']:.0f} MB")
    equal = "equal" if figures["digests_equal"] else "NOT EQUAL"
    lines.append(f"parameters of coordinator and {len(figures['digests']) - 1} agents: {equal} ({figures['digests'][0][:16]})")
    return "\n".join(lines)


def plot(summaries: list[dict[str, Any]], validation: dict[int, dict[str, Any]], path: Path) -> None:
    """Loss over probes: the operator's validation file, and the devices' own held-out examples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    probes = np.r_[0, np.cumsum([summary["probes"] for summary in summaries])]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(probes[list(validation)], [m["balanced_loss"] for m in validation.values()], "o-", label="validation file (class-balanced)")
    told = [(probes[place], s["held_out"]) for place, s in enumerate(summaries) if s["held_out"] is not None]
    if told:
        axes.plot(*zip(*told, strict=True), ".--", alpha=0.6, label="devices' own held-out examples")
    axes.set(xlabel="probes (loss evaluations of one batch, all devices)", ylabel="loss (nats)", title="Training with forward passes only")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def sentences(exported: Path, examples: Sequence[Example], task: Task) -> str:
    """The exported model on a few test sentences: one of each of the first classes, or beginnings to be continued."""
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    tokenizer.no_padding()
    chosen = list({example.label: example for example in reversed(examples)}.values()) if task.labels else list(examples)
    told = ["", "the exported model (plain ONNX) says:"]
    for example in chosen[:SENTENCES]:
        text = example.text if task.labels else example.text[:SHOWN]
        rows = encode(Example(text, example.label, example.text_pair), task, tokenizer)[:1]
        if not rows:
            continue
        logits = run_model(exported / "model.onnx", collate(rows, task).fields)[0]
        if task.labels:
            told.append(f"  {example.text[:SHOWN]!r} -> {task.labels[int(logits.argmax())]}")
        else:  # the window holds one token more than is fed
            fed = rows[0].ids[:-1].tolist()
            told.append(f"  {tokenizer.decode(fed)!r} ... -> {tokenizer.decode([int(logits[len(fed) - 1].argmax())])!r}")
    return "\n".join(told)
