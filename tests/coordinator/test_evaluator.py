"""Evaluation goes on beside a run, and waits for what can be mended."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from local_coordinator import settings
from made_rounds import FailingStore, Make, close, kinds
from test_evaluation import write
from test_export import trained

from coordinator.bench import tiny_models
from coordinator.config import Evaluation
from coordinator.evaluator import TRIES, Evaluations, Evaluator
from coordinator.rounds import Rounds
from zo.bundle import Bundle
from zo.engine import Engine
from zo.errors import DataError
from zo.evaluation import batches, evaluate

HALF = "import sys; sys.stdin.readline(); sys.stdout.write('{\"loss\": 0.'); sys.stdout.flush()"
Test = Callable[[], Awaitable[None]]


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


class Faulty(Evaluator):
    """halves: of so many processes only half an answer comes. failures: so many cannot be started."""

    halves = failures = 0

    async def _start(self) -> asyncio.subprocess.Process:
        if self.failures:
            self.failures -= 1
            raise OSError("no room for a process")
        if self.halves:
            self.halves -= 1
            pipe = asyncio.subprocess.PIPE
            return await asyncio.create_subprocess_exec(sys.executable, "-c", HALF, stdin=pipe, stdout=pipe)
        return await super()._start()


class Impatient(Evaluations):
    """Tries again at once."""

    LATER = 0.05


@pytest.fixture
def rounds(make_rounds: Make, validation: Path, tmp_path: Path) -> Rounds:
    made = make_rounds(store=str(tmp_path / "run.sqlite"), evaluation=Evaluation(str(validation), every=1, most=8))
    close(made, 2)
    return made


@pytest.fixture
def evaluator(rounds: Rounds) -> Faulty:
    return Faulty(rounds.config)


def during(rounds: Rounds, evaluator: Evaluator, test: Test) -> None:
    """The coroutine `test()` while it evaluates."""

    async def both() -> None:
        evaluates = asyncio.create_task(Impatient(rounds, evaluator).run())
        await test()
        assert not evaluates.done()
        evaluates.cancel()
        await asyncio.gather(evaluates, return_exceptions=True)
        await evaluator.stop()

    asyncio.run(asyncio.wait_for(both(), 60))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.05)


def evaluated(rounds: Rounds) -> bool:
    return 1 in rounds.store.evaluations(rounds.run.id, "validation")


def test_a_store_that_is_full_for_a_while_is_waited_for(rounds: Rounds, evaluator: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    store = rounds.store
    assert isinstance(store, FailingStore)
    store.failing = "add_evaluation"

    async def fill() -> None:
        await until(lambda: "disk full; evaluation waits until that is mended" in caplog.text)
        await asyncio.sleep(0.5)
        assert caplog.text.count("disk full") == 1
        store.failing = ""
        await until(lambda: evaluated(rounds))

    during(rounds, evaluator, fill)


def test_a_process_that_cannot_be_started_is_tried_again(rounds: Rounds, evaluator: Faulty) -> None:
    evaluator.failures = 3
    during(rounds, evaluator, lambda: until(lambda: evaluated(rounds)))
    assert kinds(rounds) == []


@pytest.mark.parametrize("halves", [1, TRIES])
def test_half_an_answer_is_none_and_after_some_training_goes_on_without(halves: int, rounds: Rounds, evaluator: Faulty) -> None:
    evaluator.halves = halves
    ended = halves == TRIES
    during(rounds, evaluator, lambda: until(lambda: bool(kinds(rounds)) if ended else evaluated(rounds)))
    assert kinds(rounds) == ["evaluation"] * ended


def test_a_file_without_examples_is_noted_and_training_goes_on_without(rounds: Rounds, evaluator: Faulty, validation: Path) -> None:
    validation.write_text("")
    during(rounds, evaluator, lambda: until(lambda: bool(kinds(rounds))))
    assert kinds(rounds) == ["evaluation"]
