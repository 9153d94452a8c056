"""Where a run stands, from its store alone."""

import time
from collections import Counter
from typing import Any

from coordinator.replay import SURE, best_entry
from coordinator.store import RunRow, Store


def of(store: Store, run: RunRow) -> dict[str, Any]:
    """The state of a run as plain data (JSON)."""
    summaries, (entry, head) = store.summaries(run.id), store.head(run.id)
    return {
        "run": run.name,
        "state": run.state,
        "entry": entry,
        "head": head.hex(),
        "devices": store.device_count(run.id),
        "rounds": len(summaries),
        "probes": sum(summary["probes"] for summary in summaries),
        "dropped": sum(summary["dropped"] for summary in summaries),
        "seconds": sum(summary["seconds"] for summary in summaries),
        "device_seconds": sum(summary.get("device_seconds", 0.0) for summary in summaries),
        "joules": dict(sum((Counter(summary.get("joules", {})) for summary in summaries), Counter())),
        "last_round": summaries[-1] if summaries else None,
        "best_entry": best_entry(store, run.id),
        "validation": store.evaluations(run.id, "validation"),
        "test": store.evaluations(run.id, "test"),
        "events": [{"at": at, "kind": kind, "text": text} for at, kind, text in store.events(run.id)[-20:]],
    }


def told(found: dict[str, Any]) -> str:
    """The same for a person."""
    by = "validation" if found["validation"] else "what devices held out"
    none_better = found["best_entry"] == 0 and len(found["validation"]) > 1
    lines = [
        f"run {found['run']!r} is {found['state']}: {found['rounds']} rounds, {found['devices']} devices, {found['probes']} probes",
        f"entry {found['entry']} (chain {found['head'][:16]}), best by {by}: entry {found['best_entry']}"
        + (f"; the class-balanced loss of no later one is lower by more than {SURE:g} standard errors" if none_better else ""),
    ]
    if found["device_seconds"]:
        drawn = ", ".join(f"{joules / 1000:.1f} kJ by {source}" for source, joules in found["joules"].items())
        lines.append(f"devices have worked {found['device_seconds'] / 60:.1f} minutes" + (f", and drew {drawn}" if drawn else ""))
    if found["last_round"]:
        last = found["last_round"]
        lines.append(f"round {last['round']}: {last['reports']} reports in {last['seconds']:.1f} s")
        lines.append(f"autopilot: {last.get('autopilot', 'not asked')}")
    for split in ("validation", "test"):
        lines += [f"{split:10} entry {entry:>5}: {describe(metrics)}" for entry, metrics in list(found[split].items())[-5:]]
    lines += [
        f"{time.strftime('%H:%M:%S', time.localtime(event['at']))} {event['kind']}: {event['text']}" for event in found["events"][-5:]
    ]
    return "\n".join(lines)


def describe(metrics: dict[str, Any]) -> str:
    """Metrics for a person."""
    prefixes = ", ".join(f"rank {rank} {each['accuracy']:.4f}" for rank, each in metrics.get("prefixes", {}).items())
    whole = f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.4f}"
    whole += f"; class-balanced: loss {metrics['balanced_loss']:.4f}, accuracy {metrics['balanced_accuracy']:.4f}"
    return whole + (f"; accuracy of {prefixes}" if prefixes else "")
