"""The parameters of any entry of a stored run, from wherever a replica is."""

import dataclasses
import logging
from pathlib import Path

import pytest
from test_export import Trained, trained

from coordinator import replay
from coordinator.store import Compacted
from zo import wire
from zo.bundle import Bundle
from zo.checkpoint import Checkpoint
from zo.errors import BundleError, StorageError
from zo.replica import Replica

ENTRIES = 8


@pytest.fixture
def run(bert_bundle: Bundle, tmp_path: Path) -> Trained:
    return trained(bert_bundle, tmp_path, ENTRIES)


@pytest.fixture
def digests(run: Trained, bert_bundle: Bundle) -> list[bytes]:
    """Of the parameters at every entry, found by adding one entry after another."""
    parameters = bert_bundle.parameters()
    found = [parameters.digest()]
    for entry in run.store.entries(run.run.id):
        parameters.add(entry.terms)
        found.append(parameters.digest())
    assert len(set(found)) == ENTRIES + 1
    return found


def at(run: Trained, bundle: Bundle, entry: int | None = None) -> Replica:
    return replay.replica(run.store, run.run, bundle, entry)


def keep_checkpoints(run: Trained, bundle: Bundle, *entries: int) -> dict[int, Checkpoint]:
    found = {entry: at(run, bundle, entry).checkpoint() for entry in entries}
    for checkpoint in found.values():
        run.store.add_checkpoint(run.run.id, checkpoint)
    return found


def place(replica: Replica) -> tuple[int, bytes, bytes]:
    return replica.entry, replica.head, replica.parameters.digest()


@pytest.mark.parametrize("checkpoints", [(), (3,), (2, 5, 8)], ids=str)
def test_a_replica_moves_to_any_entry_forward_and_back(
    checkpoints: tuple[int, ...], run: Trained, digests: list[bytes], bert_bundle: Bundle
) -> None:
    keep_checkpoints(run, bert_bundle, *checkpoints)
    replica = at(run, bert_bundle)
    for entry in (8, 7, 0, 3, 3, 5, 8, 2, 4, 1):
        replay.move(replica, run.store, run.run, entry)
        assert place(replica) == (entry, run.store.head(run.run.id, entry)[1], digests[entry])
        assert at(run, bert_bundle, entry).checkpoint() == replica.checkpoint()


def test_the_last_entry_is_the_default(run: Trained, digests: list[bytes], bert_bundle: Bundle) -> None:
    assert place(at(run, bert_bundle)) == (ENTRIES, run.replica.head, digests[ENTRIES])


def test_a_checkpoint_spares_the_entries_before_it(run: Trained, digests: list[bytes], bert_bundle: Bundle) -> None:
    keep_checkpoints(run, bert_bundle, 5)
    run.store._db.execute("UPDATE entries SET body = x'ffffff' WHERE number <= 5")
    for entry in (5, 6, 8):
        assert at(run, bert_bundle, entry).parameters.digest() == digests[entry]
    with pytest.raises(StorageError, match="a row cannot be read"):
        at(run, bert_bundle, 4)
    replica = at(run, bert_bundle, 8)
    replay.move(replica, run.store, run.run, 6)
    assert place(replica) == (6, run.store.head(run.run.id, 6)[1], digests[6])


@pytest.mark.parametrize(
    "rot",
    [
        {"digest": bytes(32)},
        {"terms": ()},
        {"head": bytes(32)},
        {"genesis": bytes(32)},
        {"entry": 6},
        None,
    ],
    ids=["digest", "terms", "head", "genesis", "entry", "bytes"],
)
@pytest.mark.parametrize("compacted", [False, True])
def test_a_rotten_checkpoint_is_passed_over_where_one_before_or_the_entries_are_there(
    rot: dict[str, object] | None,
    compacted: bool,
    run: Trained,
    digests: list[bytes],
    bert_bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = keep_checkpoints(run, bert_bundle, 2, 5)
    if compacted:
        run.store.compact(run.run.id, 2)
    if rot is None:
        run.store._db.execute("UPDATE checkpoints SET body = x'ffffff' WHERE entry = 5")
    else:
        run.store.add_checkpoint(run.run.id, dataclasses.replace(kept[5], **rot))
        if "entry" in rot:
            run.store._db.execute("UPDATE checkpoints SET entry = 5, body = (SELECT body FROM checkpoints WHERE entry = 6) WHERE entry = 5")
            run.store._db.execute("DELETE FROM checkpoints WHERE entry = 6")
    with caplog.at_level(logging.WARNING):
        assert place(at(run, bert_bundle)) == (ENTRIES, run.replica.head, digests[ENTRIES])
    assert "the checkpoint at entry 5 is not used" in caplog.text


def test_a_rotten_checkpoint_that_stands_for_compacted_entries_is_told(run: Trained, bert_bundle: Bundle) -> None:
    kept = keep_checkpoints(run, bert_bundle, 5)
    run.store.compact(run.run.id, 5)
    run.store.add_checkpoint(run.run.id, dataclasses.replace(kept[5], digest=bytes(32)))
    with pytest.raises(Compacted, match="entries up to 5 have none"):
        at(run, bert_bundle)


def test_before_the_compacted_entries_there_is_only_the_bundle(run: Trained, digests: list[bytes], bert_bundle: Bundle) -> None:
    keep_checkpoints(run, bert_bundle, 2, 5)
    run.store.compact(run.run.id, 5)
    assert [at(run, bert_bundle, entry).parameters.digest() for entry in (0, 2, 5, 6)] == [digests[entry] for entry in (0, 2, 5, 6)]
    for entry in (1, 3, 4):
        with pytest.raises(Compacted, match="entries up to 5 have none"):
            at(run, bert_bundle, entry)


def test_there_is_nothing_beyond_the_last_entry(run: Trained, bert_bundle: Bundle) -> None:
    with pytest.raises(StorageError, match=f"has no entry {ENTRIES + 1}; it ends at {ENTRIES}"):
        at(run, bert_bundle, ENTRIES + 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE entries SET contributors = 9 WHERE number = 3", "entry 3 does not fit its hash chain"),
        ("UPDATE entries SET body = (SELECT body FROM entries WHERE number = 4) WHERE number = 3", "entry 4 does not follow entry 2"),
        ("UPDATE entries SET body = x'ffffff' WHERE number = 3", "a row cannot be read"),
    ],
)
def test_a_changed_ledger_is_refused(change: str, said: str, run: Trained, bert_bundle: Bundle) -> None:
    run.store._db.execute(change)
    with pytest.raises(StorageError, match=said):
        at(run, bert_bundle)


def test_terms_that_the_chain_does_not_cover_are_refused(run: Trained, bert_bundle: Bundle) -> None:
    entry = run.store.entries(1)[0]
    run.store._db.execute("UPDATE entries SET body = ? WHERE number = 1", (wire.encode(dataclasses.replace(entry, terms=())),))
    with pytest.raises(StorageError, match="the entries up to 1 do not lead to the identity stored; restore the store from a backup"):
        at(run, bert_bundle, 1)
    with pytest.raises(StorageError, match="do not have the digest stated"):
        at(run, bert_bundle, 2)


def test_the_best_entry_has_the_lowest_balanced_validation_loss(run: Trained) -> None:
    assert replay.best_entry(run.store, 1) == ENTRIES
    for entry, loss in ((0, 1.0), (2, 0.5), (1, 0.5), (3, 0.75)):
        run.store.add_evaluation(1, entry, "validation", {"balanced_loss": loss, "loss": -entry})
    assert replay.best_entry(run.store, 1) == 1


def test_an_entry_that_is_not_surely_better_than_the_start_is_not_the_best(run: Trained) -> None:
    evaluated = {0: (1.0, 0.0, 0.0), 2: (0.9, 0.1, 0.06), 3: (0.95, 0.05, 0.02), 4: (0.97, 0.03, 0.01)}
    for entry, (loss, gain, error) in evaluated.items():
        run.store.add_evaluation(1, entry, "validation", {"balanced_loss": loss, "gain": gain, "gain_error": error})
    assert replay.best_entry(run.store, 1) == 3
    run.store.add_evaluation(1, 3, "validation", {"balanced_loss": 1.2, "gain": -0.2, "gain_error": 0.02})
    run.store.add_evaluation(1, 4, "validation", {"balanced_loss": 1.1, "gain": -0.1, "gain_error": 0.01})
    assert replay.best_entry(run.store, 1) == 0


def test_of_entries_as_good_as_the_lowest_the_last_is_the_best(run: Trained) -> None:
    def evaluated(entry: int, loss: float, over: int, error: float) -> int:
        metrics = {
            "balanced_loss": loss,
            "gain": 1 - loss,
            "gain_error": 0.01,
            "over": over,
            "rise": loss - losses[over],
            "rise_error": error,
        }
        run.store.add_evaluation(1, entry, "validation", metrics)
        losses[entry] = loss
        return replay.best_entry(run.store, 1)

    losses = {0: 1.0}
    assert evaluated(1, 0.50, over=0, error=0.1) == 1
    assert evaluated(2, 0.52, over=1, error=0.01) == 1  # surely higher
    assert evaluated(3, 0.52, over=1, error=0.03) == 3
    assert evaluated(4, 0.40, over=1, error=0.03) == 4
    assert evaluated(5, 0.41, over=4, error=0.03) == 5
    assert evaluated(6, 0.45, over=4, error=0.03) == 5


def test_checkpoints_are_dropped_unless_something_depends_on_them(run: Trained, bert_bundle: Bundle) -> None:
    keep_checkpoints(run, bert_bundle, 1, 2, 3, 4, 5, 6, 7, 8)
    run.store.compact(1, 2)
    run.store.add_evaluation(1, 4, "validation", {"balanced_loss": 0.5})
    replay.drop_checkpoints(run.store, 1, 3)
    assert run.store.checkpoints(1) == [2, 4, 5, 7, 8]
    replay.drop_checkpoints(run.store, 1)
    assert run.store.checkpoints(1) == [2, 4, 7, 8]


def test_the_bundle_is_found_where_the_run_says_or_where_it_lies_now(run: Trained, bert_bundle: Bundle) -> None:
    assert replay.opened(run.run).digest == bert_bundle.digest
    moved = dataclasses.replace(run.run, bundle=Path("/nowhere"))
    assert replay.opened(moved, bert_bundle.folder).digest == bert_bundle.digest


def test_a_bundle_that_is_gone_is_told_by_the_run(run: Trained) -> None:
    with pytest.raises(BundleError, match=r"the bundle of run 'run' is not at /nowhere any more; put it back"):
        replay.opened(dataclasses.replace(run.run, bundle=Path("/nowhere")))
