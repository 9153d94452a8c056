"""What the demo shows: progress, the table at the end, the plot, and the exported model at work."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from zo.batches import collate, encode
from zo.engine import run_model
from zo.examples import Example
from zo.manifest import Task

SENTENCES = 6


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
        parts = [f"round {done:3}/{self._rounds}", f"devices' loss {held_out:.3f}" if held_out is not None else "devices' loss   -  "]
        if entry is not None:
            parts.append(
                f"validation: loss {validation[entry]['loss']:.3f} accuracy {validation[entry]['balanced_accuracy']:.3f} (entry {entry})"
            )
        parts.append(f"up {up / 1e3:.1f} kB, down {down / 1e3:.1f} kB")
        if memory:
            parts.append("MiB " + " ".join(map(str, memory.values())))
        line = " | ".join(parts)
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


def sentences(exported: Path, lines: list[dict[str, Any]], task: Task) -> str:
    """The exported model on a few test sentences; one of each of the first classes."""
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    tokenizer.no_padding()
    chosen = list({str(line.get("label")): line for line in reversed(lines)}.values())[:SENTENCES]
    told = ["", "the exported model (plain ONNX) says:"]
    for line in chosen:
        row = encode(Example(line["text"], 0, line.get("text_pair")), task, tokenizer)[0]
        logits = run_model(exported / "model.onnx", collate([row], task).fields)
        if task.labels:
            told.append(f"  {line['text'][:60]!r} -> {task.labels[int(logits[0].argmax())]}")
        else:
            following = tokenizer.decode([int(logits[0, -1].argmax())])
            told.append(f"  {json.dumps(line['text'][:60])} ... -> {following!r}")
    return "\n".join(told)
