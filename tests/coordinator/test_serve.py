"""Evaluation beside training: a process that dies is begun again, and training outlives what cannot be evaluated."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from local_coordinator import settings
from test_evaluation import write
from test_export import trained

from coordinator.bench import tiny_models
from coordinator.config import Evaluation
from coordinator.serve import TRIES, Evaluator
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DataError
from zo.evaluation import batches, evaluate


class Dying(Evaluator):
    """Its first processes end without an answer."""

    deaths, starts = 0, 0

    async def _start(self) -> asyncio.subprocess.Process:
        self.starts += 1
        does = "sys.exit(9)" if self.starts <= self.deaths else "print(json.dumps({'loss': 0.5}), flush=True)"
        code = f"import json, sys\nfor line in sys.stdin:\n    {does}"
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=pipe, stdout=pipe)


def asked(evaluator: Evaluator, times: int = 1) -> list[dict[str, object]]:
    async def go() -> list[dict[str, object]]:
        try:
            return [await evaluator.ask(3, "validation") for _ in range(times)]
        finally:
            await evaluator.stop()

    return asyncio.run(asyncio.wait_for(go(), 60))


@pytest.mark.parametrize("deaths", range(TRIES))
def test_a_process_that_dies_is_begun_again(deaths: int, bert_bundle: Bundle) -> None:
    evaluator = Dying(settings(bert_bundle))
    evaluator.deaths = deaths
    assert asked(evaluator, 2) == [{"loss": 0.5}] * 2
    assert evaluator.starts == deaths + 1


def test_a_process_that_always_dies_is_given_up(bert_bundle: Bundle) -> None:
    evaluator = Dying(settings(bert_bundle))
    evaluator.deaths = 10**6
    with pytest.raises(DataError, match=f"entry 3: the evaluating process ended {TRIES} times; is there memory for it?"):
        asked(evaluator)
    assert evaluator.starts == TRIES


def test_an_answer_after_the_process_was_killed_is_the_same(bert_bundle: Bundle, tmp_path: Path) -> None:
    model = trained(bert_bundle, tmp_path)
    path = write(tmp_path / "a.jsonl", [{"text": text, "label": n % 3} for n, text in enumerate(tiny_models.sentences(9))])
    evaluator = Evaluator(settings(bert_bundle, store=str(tmp_path / "run.sqlite"), evaluation=Evaluation(validation=str(path))))

    async def go() -> list[dict[str, object]]:
        found = [await evaluator.ask(3, "validation", over=2)]
        assert evaluator._process is not None
        os.kill(evaluator._process.pid, signal.SIGKILL)
        found.append(await evaluator.ask(3, "validation", over=2))
        await evaluator.stop()
        return found

    first, second = asyncio.run(asyncio.wait_for(go(), 60))
    assert first == second
    assert first["over"] == 2
    expected = evaluate(Engine(bert_bundle, model.parameters), batches(bert_bundle, path))
    assert {name: first[name] for name in expected} == pytest.approx(expected)


def test_a_coordinator_takes_all_the_connections_that_the_system_allows() -> None:
    code = "import resource as r; kind = r.RLIMIT_NOFILE; hard = r.getrlimit(kind)[1]; r.setrlimit(kind, (64, hard));"
    code += "from coordinator.serve import allow_connections; allow_connections(); print(r.getrlimit(kind) == (hard, hard))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")
