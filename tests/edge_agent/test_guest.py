"""Between runs of the model the guest stops, rests, pauses with a reason, and goes on when nothing speaks against it."""

import logging
import threading
import time
from typing import Any

import pytest

from edge_agent.governor import Governor
from edge_agent.guest import Guest
from edge_agent.manners import Objection
from edge_agent.pressure import OWN, Line
from edge_agent.stopping import Stopped
from zo.bundle import Bundle
from zo.engine import Engine, EnoughProbed


class Says:
    """Objects as a test says, for so many looks."""

    def __init__(self, *objections: Objection | None) -> None:
        self.objections = list(objections)

    def objection(self) -> Objection | None:
        return self.objections.pop(0) if self.objections else None


class Told:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []

    def __call__(self, **facts: Any) -> None:
        self.facts.append(facts)


def test_it_waits_until_nothing_objects_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    told = Told()
    guest = Guest(threading.Event(), [Says(None), Says(Objection("it is hot: 81 °C"), Objection("it is hot: 80 °C"))], told)
    began = time.monotonic()
    guest.go_on()
    assert time.monotonic() - began > 0.3
    assert told.facts == [{"state": "paused", "held_back": "it is hot: 81 °C"}, {"state": "working", "held_back": ""}]
    assert [message for message in caplog.messages if message.startswith("pausing")] == ["pausing: it is hot: 81 °C"]
    assert any(message.startswith("going on after") for message in caplog.messages)


def test_another_reason_is_told_again() -> None:
    told = Told()
    Guest(threading.Event(), [Says(Objection("it is hot: 81 °C"), Objection("on battery; waiting for mains"))], told).go_on()
    assert [fact["held_back"] for fact in told.facts] == ["it is hot: 81 °C", "on battery; waiting for mains", ""]


def test_what_asks_for_no_rest_is_told_and_worked_on_with() -> None:
    told = Told()
    guest = Guest(threading.Event(), [Says(Objection("the bytes of the disk are spent", rest=False))], told)
    guest.go_on()
    assert told.facts == [{"held_back": "the bytes of the disk are spent"}]


def test_it_is_stopped_within_a_second_while_it_pauses() -> None:
    class Always:
        def objection(self) -> Objection:
            return Objection("never")

    stop = threading.Event()
    guest = Guest(stop, [Always()])
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        guest.go_on()
    assert time.monotonic() - began < 1.3
    with pytest.raises(Stopped):
        guest.check_stop()


def test_policies_are_not_asked_between_every_two_runs() -> None:
    now = [0.0]
    policy = Says(*[None] * 100)
    guest = Guest(threading.Event(), [policy], clock=lambda: now[0])
    for now[0] in (0.0, 0.01, Guest.LOOK - 0.01):
        guest.go_on()
    assert len(policy.objections) == 99
    now[0] = Guest.LOOK + 0.001
    guest.go_on()
    assert len(policy.objections) == 98


def test_a_share_of_the_processor_is_kept_by_resting() -> None:
    guest = Guest(threading.Event(), share=0.25)
    began, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.4:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        guest.go_on()
    assert (time.process_time() - cpu) / (time.monotonic() - began) < 0.35


def test_the_governor_sets_the_rows_of_the_engine_and_ends_probes(bert_bundle: Bundle) -> None:
    engine, told, used = Engine(bert_bundle, bert_bundle.parameters()), Told(), [50.0]
    guest = Guest(threading.Event(), tell=told)
    guest.govern(engine, Governor(96, [lambda: Line(OWN, used[0], 80, 100)], engine.trim))
    guest.begin_probe()
    guest.go_on_probing()
    assert engine.max_rows == 96
    used[0] = 90
    time.sleep(0.25)
    guest.go_on_probing()
    assert engine.max_rows == 48
    assert told.facts[-1]["memory"]["sheds"] == 1
    used[0] = 110
    time.sleep(0.15)
    with pytest.raises(EnoughProbed):
        guest.go_on_probing()
    assert guest.abandoned
    used[0] = 50
    guest.begin_probe()
    assert not guest.abandoned
