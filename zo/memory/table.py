"""The table of methods: what each takes of a model, whether that fits, and the largest of everything that would."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from zo.memory import fitting, units
from zo.memory.engine import Device
from zo.memory.methods import METHODS, Work
from zo.memory.shapes import PUBLISHED, ModelShape

TERMS = {"base": "base", "trainables": "trained", "optimiser": "optim.", "activations": "activ.", "logits": "logits", "caches": "caches"}


def rows(model: ModelShape | None, work: Work, device: Device, budget: float) -> list[dict[str, Any]]:
    """One row a method. model: whose terms are told, and largest directions, examples and tokens; without one only the largest models."""
    made = []
    for name, method in METHODS.items():
        row: dict[str, Any] = {"method": name}
        if model:
            need = method(model, work, device)
            row |= {"terms": dataclasses.asdict(need), "total": need.total, "fits": need.total <= budget}
            row["most_examples"] = fitting.most_examples(method, model, work, device, budget)
            row["most_tokens"] = fitting.most_tokens(method, model, work, device, budget)
            if name.startswith("MeZO, adapters"):
                row["most_directions"] = fitting.most_directions(method, model, work, device, budget)
        largest = fitting.largest_model(method, work, device, budget, PUBLISHED)
        row |= {"largest_model": largest, "largest_parameters": fitting.largest_scaled(method, work, device, budget)}
        made.append(row)
    return made


def told(found: Sequence[dict[str, Any]], work: Work) -> str:
    """For a person; * marks what fits."""
    with_model = "total" in found[0]
    head = f"{'method':44}"
    if with_model:
        head += f"{'needs':>9}   {''.join(f'{each:>9}' for each in TERMS.values())}   {'P':>5}{'batch':>6}{'tokens':>7}"
    lines = [f"{head}   largest model that fits: of those published, of any size"]
    for row in found:
        line = f"{row['method']:44}"
        if with_model:
            terms = "".join(f"{units.told(row['terms'][name]):>9}" for name in TERMS)
            most = f"{row.get('most_directions', ''):>5}{row['most_examples'] or '-':>6}{row['most_tokens'] or '-':>7}"
            line += f"{units.told(row['total']):>9} {'*' if row['fits'] else ' '} {terms}   {most}"
        lines.append(f"{line}   {row['largest_model'] or 'none':13}{row['largest_parameters'] / 1e6:8.0f} M")
    shape = f"{work.examples} examples of {work.tokens} tokens"
    note = (
        f"{shape}, {work.directions} direction(s) side by side; a loss at {'every token' if work.every_token else 'one place an example'}"
    )
    if with_model:
        note += f"; * fits; imports {units.told(found[0]['terms']['imports'])}; P, batch, tokens: the most that fit, the others as they are"
    return "\n".join([note, *lines])
