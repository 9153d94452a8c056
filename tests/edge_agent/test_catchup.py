"""The cheapest way for a line and a processor, what the log says of it, and checkpoints fetched in pieces."""

import itertools
import logging
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import catchup
from edge_agent.catchup import cheapest, choose, described, fetch, seconds
from zo import wire
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint, GroupValues
from zo.messages import CheckpointRequest, FileChunk, Offer, Way
from zo.replica import Diverged
from zo.terms import Term

DIGEST = bytes(32)
ENTRIES = Offer(Way.ENTRIES, 9, 40_000, 5_000_000, DIGEST)
FOLD = Offer(Way.FOLD, 8, 20_000, 9_000_000, DIGEST)
SNAPSHOT = Offer(Way.SNAPSHOT, 8, 900_000, 0, DIGEST)
ALL = (ENTRIES, FOLD, SNAPSHOT)

SPEEDS = st.floats(1, 1e12)
WAYS = st.sampled_from([Way.ENTRIES, Way.FOLD, Way.SNAPSHOT])
OFFER_MADE = st.builds(Offer, WAYS, st.just(9), st.integers(0, 10**9), st.integers(0, 10**13), st.just(DIGEST))
OFFERS = st.lists(OFFER_MADE, min_size=1, max_size=4).map(tuple)


def test_an_offer_takes_its_bytes_and_its_signs() -> None:
    assert seconds(Offer(Way.FOLD, 1, 3000, 5_000_000, DIGEST), 1000.0, 1e6) == 8.0
    assert seconds(SNAPSHOT, 9e5, 1.0) == 1.0


@given(OFFERS, SPEEDS, SPEEDS)
def test_nothing_offered_is_faster_than_what_is_chosen(offers: tuple[Offer, ...], link: float, replay: float) -> None:
    chosen = cheapest(offers, link, replay)
    assert chosen in offers
    assert all(seconds(chosen, link, replay) <= offer.size / link + offer.signs / replay for offer in offers)


@given(OFFERS, SPEEDS, SPEEDS, st.floats(1.0, 1e6))
def test_a_slower_line_never_chooses_more_bytes(offers: tuple[Offer, ...], link: float, replay: float, slower: float) -> None:
    fast, slow = cheapest(offers, link, replay), cheapest(offers, link / slower, replay)
    assert slow.size <= fast.size or seconds(slow, link, replay) <= seconds(fast, link, replay) * (1 + 1e-9)


@given(OFFERS, SPEEDS, SPEEDS, st.floats(1.0, 1e6))
def test_a_slower_processor_never_chooses_more_signs(offers: tuple[Offer, ...], link: float, replay: float, slower: float) -> None:
    fast, slow = cheapest(offers, link, replay), cheapest(offers, link, replay / slower)
    assert slow.signs <= fast.signs or seconds(slow, link, replay) <= seconds(fast, link, replay) * (1 + 1e-9)


@pytest.mark.parametrize("offers", list(itertools.permutations(ALL)))
@pytest.mark.parametrize(
    ("link", "replay", "way"), [(1e3, 1e9, Way.FOLD), (1e9, 1e3, Way.SNAPSHOT), (1e6, 1e8, Way.ENTRIES)], ids=["line", "processor", "both"]
)
def test_a_slow_line_takes_few_bytes_and_a_slow_processor_few_signs(
    link: float, replay: float, way: Way, offers: tuple[Offer, ...]
) -> None:
    assert cheapest(offers, link, replay).way is way


# --- what a person reads ---


def test_an_offer_is_told_in_bytes_and_seconds() -> None:
    assert described(FOLD, 10_000.0, 1e6) == "fold 20.0 kB, 11.0 s"
    assert described(Offer(Way.ENTRIES, 1, 40, 0, DIGEST), 10_000.0, 1e6) == "entries 0.0 kB, 0.0 s"


def test_the_log_says_what_was_chosen_and_why(bert_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose(ALL, 3, bert_bundle.parameters(), 0.001) is FOLD
    (line,) = [record.getMessage() for record in caplog.records]
    pattern = (
        r"catching up from entry 3 to 8 by fold 20\.0 kB, 2\d{7}\.\d s"
        r" rather than entries 40\.0 kB, 4\d{7}\.\d s; snapshot 900\.0 kB, 9\d{8}\.\d s \(at 0 kB/s and \d+ million signs/s\)"
    )
    assert re.fullmatch(pattern, line), line


def test_a_single_offer_is_not_compared(bert_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose((ENTRIES,), 0, bert_bundle.parameters(), 125_000.0) is ENTRIES
    assert "rather than" not in caplog.text
    assert "from entry 0 to 9 by entries 40.0 kB" in caplog.text
    assert "at 125 kB/s" in caplog.text


def test_the_speed_of_this_processor_is_a_speed_and_changes_nothing(bert_bundle: Bundle) -> None:
    parameters = bert_bundle.parameters()
    before = parameters.digest()
    assert 1e6 < catchup.replay_speed(parameters) < 1e13
    assert parameters.digest() == before


# --- fetching ---

CHECKPOINT = Checkpoint(bytes(32), 8, bytes(32), DIGEST, (Term((0, 1), 3, np.arange(-50, 50)),), (GroupValues(2, bytes(range(200))),))
BODY = wire.encode(CHECKPOINT)
OFFER = Offer(Way.FOLD, 8, len(BODY) + 40, 0, DIGEST)  # with the entries that follow


def server(
    body: bytes, piece: int = 64, size: int | None = None
) -> tuple[Callable[[CheckpointRequest], FileChunk], list[CheckpointRequest]]:
    asked: list[CheckpointRequest] = []

    def ask(request: CheckpointRequest) -> FileChunk:
        asked.append(request)
        assert len(asked) < 1000
        return FileChunk(body[request.offset : request.offset + piece], len(body) if size is None else size)

    return ask, asked


@pytest.mark.parametrize("piece", [1, 64, len(BODY) - 1, len(BODY), len(BODY) + 1])
def test_a_checkpoint_is_fetched_in_pieces(piece: int) -> None:
    ask, asked = server(BODY, piece)
    assert fetch(ask, 5, OFFER) == CHECKPOINT
    assert asked == [CheckpointRequest(5, Way.FOLD, 8, offset) for offset in range(0, len(BODY), piece)]


def test_a_checkpoint_larger_than_its_offer_is_given_up_at_the_first_piece() -> None:
    ask, asked = server(BODY + bytes(41))
    with pytest.raises(Diverged, match="the checkpoint at entry 8 is not the one offered"):
        fetch(ask, 5, OFFER)
    assert len(asked) == 1


@pytest.mark.parametrize("body", [b"", BODY[:64]], ids=["nothing", "one piece"])
def test_a_checkpoint_that_ends_early_is_given_up(body: bytes) -> None:
    ask, asked = server(body, size=len(BODY))
    with pytest.raises(Diverged, match="is not the one offered"):
        fetch(ask, 5, OFFER)
    assert len(asked) == 1 + bool(body)


def test_a_checkpoint_that_grows_while_it_is_fetched_is_given_up() -> None:
    count = itertools.count()
    with pytest.raises(Diverged, match="is not the one offered"):
        fetch(lambda request: FileChunk(b"x", len(BODY) + 20 * next(count)), 5, OFFER)


@pytest.mark.parametrize("body", [b"\xff" * 40, BODY[:-1], BODY[:70], b"\x0a\x05ab"], ids=["noise", "cut", "cut early", "torn"])
def test_a_garbled_checkpoint_is_told_so(body: bytes) -> None:
    ask, _ = server(body)
    with pytest.raises(Diverged, match="the checkpoint at entry 8 cannot be read: no valid Checkpoint"):
        fetch(ask, 5, OFFER)


@pytest.mark.parametrize("changed", [{"entry": 7}, {"entry": 9}, {"digest": bytes([1] * 32)}], ids=lambda changed: str(*changed))
def test_another_checkpoint_than_the_one_offered_is_refused(changed: dict[str, int | bytes]) -> None:
    ask, _ = server(wire.encode(Checkpoint(**CHECKPOINT.__dict__ | changed)))  # type: ignore[arg-type]
    with pytest.raises(Diverged, match="the checkpoint at entry 8 is not the one offered"):
        fetch(ask, 5, OFFER)
