"""Going through a ledger: log, diff, verify, back to any round, and folding the past without losing what it proves."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_coordinator import answer, settings
from test_export import Trained, trained

from coordinator import history, replay
from coordinator.cli import main
from coordinator.config import Round
from coordinator.export import TRAINED, export
from coordinator.rounds import Rounds
from coordinator.sqlite_store import SqliteStore
from coordinator.store import Compacted
from zo import wire
from zo.bundle import Bundle
from zo.checkpoint import signs
from zo.errors import ConfigError, StorageError
from zo.ledger import Entry, chain
from zo.messages import Verdict
from zo.replica import Replica
from zo.terms import Term

ENTRIES = 6

Run = Trained


@pytest.fixture
def run(bert_bundle: Bundle, tmp_path: Path) -> Run:
    """Six entries; 2, 4 and 6 state a digest."""
    return trained(bert_bundle, tmp_path, ENTRIES)


def digest(run: Run, bundle: Bundle, entry: int) -> bytes:
    return replay.replica(run.store, run.run, bundle, entry).parameters.digest()


class Meanwhile(SqliteStore):
    """Another process appends an entry when something is about to be read or written here."""

    when, times = "", 1

    def _other(self, method: str) -> None:
        if method == self.when and self.times:
            self.times -= 1
            store = SqliteStore(self.path)
            number, head = store.head(1)
            entry = Entry(number + 1, number + 1, 1, (Term((0, 1), 7 * number, np.array([5])),))
            store.commit(1, entry, head, 0, {"round": number + 1})

    def entries(self, run: int, after: int = 0, most: int = -1) -> list[Entry]:
        found = super().entries(run, after, most)
        self._other("after entries")
        return found

    def summaries(self, run: int, last: int = -1) -> list[dict[str, Any]]:
        self._other("summaries")
        return super().summaries(run, last)

    def commit(self, run: int, entry: Entry, previous: bytes, signs: int, summary: dict[str, Any]) -> bytes:
        self._other("commit")
        return super().commit(run, entry, previous, signs, summary)


def meanwhile(run: Run, when: str, times: int = 1) -> Meanwhile:
    store = Meanwhile(run.store.path)
    store.when, store.times = when, times
    return store


# --- which entry a round is ---


def test_a_round_is_known_by_the_entry_that_closed_it(run: Run) -> None:
    head = run.store.head(1)[1]
    run.store.commit(1, Entry(7, 9, 0, ()), head, 0, {"round": 9})  # rounds that were refused are none
    assert [history.entry_at(run.store, run.run, number) for number in (0, 1, 6, 9)] == [0, 1, 6, 7]
    for number in (-1, 7, 8, 10):
        with pytest.raises(ConfigError, match=rf"run 'run' has closed rounds 1 to 9, not {number}"):
            history.entry_at(run.store, run.run, number)


def test_before_the_first_entry_there_is_round_0(bert_bundle: Bundle, tmp_path: Path) -> None:
    run = trained(bert_bundle, tmp_path, 0)
    assert history.entry_at(run.store, run.run, 0) == 0
    with pytest.raises(ConfigError, match="has closed rounds 1 to 0, not 1"):
        history.entry_at(run.store, run.run, 1)


# --- log and diff ---


def test_the_log_tells_of_every_entry_compacted_or_not(run: Run, bert_bundle: Bundle) -> None:
    before = history.log(run.store, run.run)
    assert [row["entry"] for row in before] == [row["round"] for row in before] == list(range(1, ENTRIES + 1))
    assert [row["chain"] for row in before] == [run.store.head(1, number)[1].hex() for number in range(1, ENTRIES + 1)]
    assert [row["digest"] for row in before] == [digest(run, bert_bundle, n).hex() if n % 2 == 0 else None for n in range(1, ENTRIES + 1)]
    assert [row["terms_digest"] for row in before] == [entry.header.terms_digest.hex() for entry in run.store.entries(1)]
    assert {(row["contributors"], row["compacted"], row["rolled_back_to"]) for row in before} == {(1, False, None)}
    history.compact_all_but(run.store, run.run, bert_bundle, 2)
    after = history.log(run.store, run.run)
    assert [row.pop("compacted") for row in after] == [True] * 4 + [False] * 2
    assert after == [{key: value for key, value in row.items() if key != "compacted"} for row in before]
    history.rollback(run.store, run.run, bert_bundle, 4)
    assert [row["rolled_back_to"] for row in history.log(run.store, run.run)] == [None] * 6 + [4]


def test_a_round_that_closes_while_the_log_is_read_does_not_matter(run: Run) -> None:
    assert [row["entry"] for row in history.log(meanwhile(run, "summaries"), run.run)] == list(range(1, ENTRIES + 1))


@pytest.mark.parametrize(("first", "second"), [(2, 5), (5, 2), (0, 6), (3, 3)])
def test_a_diff_counts_what_differs_by_group(first: int, second: int, run: Run, bert_bundle: Bundle) -> None:
    rows = history.diff(run.store, run.run, bert_bundle, first, second)
    one, other = (replay.replica(run.store, run.run, bert_bundle, entry).parameters for entry in (first, second))
    assert [row["group"] for row in rows] == [group.id for group in bert_bundle.manifest.groups]
    for row, group in zip(rows, bert_bundle.manifest.groups, strict=True):
        change = other.flat(group.id).astype(np.float64) - one.flat(group.id)
        assert (row["kind"], row["values"], row["changed"]) == (group.kind, group.size, np.sum(change != 0))
        assert row["rms"] == pytest.approx(np.linalg.norm(change) / np.sqrt(group.size))
        assert row["largest"] == np.abs(change).max()
        assert (row["changed"] > 0) == (first != second)


# --- verify ---


def test_a_true_ledger_is_verified(run: Run, bert_bundle: Bundle) -> None:
    found = history.verify_run(run.store, run.run, bert_bundle)
    expected = {"entries": 6, "compacted": 0, "digests": 3, "digest": digest(run, bert_bundle, 6).hex(), "chain": run.replica.head.hex()}
    assert found == {"run": "run"} | expected
    history.compact_all_but(run.store, run.run, bert_bundle, 3)
    assert history.verify_run(run.store, run.run, bert_bundle) == {"run": "run"} | expected | {"compacted": 3, "digests": 2}


def test_a_round_that_closes_while_a_run_is_verified_does_not_matter(run: Run, bert_bundle: Bundle) -> None:
    found = history.verify_run(meanwhile(run, "after entries", 9), run.run, bert_bundle)
    assert found["chain"] == run.store.head(1, found["entries"])[1].hex()
    assert ENTRIES <= found["entries"] < run.store.head(1)[0]


def changed_terms(entry: Entry) -> Entry:
    first = entry.terms[0]
    steps = first.steps.copy()
    steps[0] += 1
    return dataclasses.replace(entry, terms=(Term(first.groups, first.first_seed, steps), *entry.terms[1:]))


def rewrite(run: Run, entry: Entry, *, chained: bool) -> None:
    """Put an entry in place of another; chained: with headers and chain anew, as a forger would."""
    database = run.store._db
    database.execute("UPDATE entries SET body = ? WHERE number = ?", (wire.encode(entry), entry.number))
    if not chained:
        return
    header = entry.header
    values = (header.terms_digest, header.digest, entry.number)
    database.execute("UPDATE entries SET terms_digest = ?, digest = ? WHERE number = ?", values)
    head = run.run.genesis
    for each, _ in run.store.headers(1):
        head = chain(head, each)
        database.execute("UPDATE entries SET head = ? WHERE number = ?", (head, each.number))


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_changed_term_is_found(number: int, run: Run, bert_bundle: Bundle) -> None:
    rewrite(run, changed_terms(run.store.entries(1)[number - 1]), chained=False)
    said = "do not have the digest stated" if number == 6 else "its terms are not those that the hash chain covers"
    with pytest.raises(StorageError, match=f"entry {number}: .*{said}"):
        history.verify_run(run.store, run.run, bert_bundle)


def test_a_changed_term_is_found_by_the_next_digest_even_under_a_forged_chain(run: Run, bert_bundle: Bundle) -> None:
    rewrite(run, changed_terms(run.store.entries(1)[2]), chained=True)
    run.store.check_chain(run.run)
    with pytest.raises(StorageError, match="entry 4: the parameters at entry 4 do not have the digest stated"):
        history.verify_run(run.store, run.run, bert_bundle)


def test_a_changed_digest_is_found_under_a_forged_chain(run: Run, bert_bundle: Bundle) -> None:
    rewrite(run, dataclasses.replace(run.store.entries(1)[4], digest=bytes(range(32))), chained=True)
    with pytest.raises(StorageError, match="entry 5: the parameters at entry 5 do not have the digest stated"):
        history.verify_run(run.store, run.run, bert_bundle)


def test_a_changed_head_is_found(run: Run, bert_bundle: Bundle) -> None:
    run.store._db.execute("UPDATE entries SET head = zeroblob(32) WHERE number = 6")
    with pytest.raises(StorageError, match="entry 6 does not fit its hash chain"):
        history.verify_run(run.store, run.run, bert_bundle)


def test_heads_that_are_given_are_compared_one_by_one(run: Run, bert_bundle: Bundle) -> None:
    heads = [run.store.head(1, number)[1] for number in range(1, ENTRIES + 1)]
    made = Replica(bert_bundle.parameters(), run.run.genesis, bert_bundle.initial_tensors)
    assert history.verify(run.store.entries(1), heads, made) == 3
    heads[3] = bytes(32)
    made.reset()
    with pytest.raises(StorageError, match="entry 4: its terms are not those that the hash chain covers"):
        history.verify(run.store.entries(1), heads, made)


def test_another_bundle_verifies_nothing(run: Run, llama_bundle: Bundle) -> None:
    with pytest.raises(StorageError, match="is not the bundle that run 'run' was begun with"):
        history.verify_run(run.store, run.run, llama_bundle)


# --- rollback ---


@pytest.mark.parametrize("to", [0, 1, 4, 6])
def test_a_rollback_gives_the_exact_parameters_of_that_round(to: int, run: Run, bert_bundle: Bundle) -> None:
    wanted, before = digest(run, bert_bundle, to), run.store.entries(1)
    made = history.rollback(run.store, run.run, bert_bundle, to)
    assert (made.number, made.round, made.contributors, made.digest) == (7, 7, 0, wanted)
    assert run.store.entries(1) == [*before, made]
    assert digest(run, bert_bundle, 7) == wanted
    heads = [head for _, head in run.store.headers(1)]
    assert len(set(heads)) == 7
    assert [(kind, text) for _, kind, text in run.store.events(1)] == [("rolled back", f"entry 7 takes the parameters back to round {to}")]
    assert run.store.cost(1, 6).signs == signs(made.terms, run.replica.sizes)
    assert history.verify_run(run.store, run.run, bert_bundle)["digests"] == 4


def test_a_rollback_can_be_rolled_back(run: Run, bert_bundle: Bundle) -> None:
    history.rollback(run.store, run.run, bert_bundle, 2)
    made = history.rollback(run.store, run.run, bert_bundle, 6)
    assert (made.number, made.digest) == (8, digest(run, bert_bundle, 6))
    assert history.rollback(run.store, run.run, bert_bundle, 7).digest == digest(run, bert_bundle, 2)
    assert history.rollback(run.store, run.run, bert_bundle, 0).digest == bert_bundle.parameters().digest()
    assert history.verify_run(run.store, run.run, bert_bundle)["entries"] == 10


def test_a_rollback_beyond_the_ledger_is_refused_and_changes_nothing(run: Run, bert_bundle: Bundle) -> None:
    for to in (-1, 7):
        with pytest.raises(ConfigError, match=f"has closed rounds 1 to 6, not {to}"):
            history.rollback(run.store, run.run, bert_bundle, to)
    assert run.store.head(1)[0] == ENTRIES


@pytest.mark.parametrize("times", [1, 3])
def test_rounds_that_close_meanwhile_are_rolled_back_too(times: int, run: Run, bert_bundle: Bundle) -> None:
    made = history.rollback(meanwhile(run, "commit", times), run.run, bert_bundle, 2)
    assert (made.number, made.round, made.digest) == (7 + times, 7 + times, digest(run, bert_bundle, 2))
    assert history.verify_run(run.store, run.run, bert_bundle)["entries"] == 7 + times
    assert len(run.store.events(1)) == 1


def test_a_round_that_closes_after_the_entries_were_read_is_rolled_back_too(run: Run, bert_bundle: Bundle) -> None:
    made = history.rollback(meanwhile(run, "after entries"), run.run, bert_bundle, 2)
    assert (made.number, made.digest) == (8, digest(run, bert_bundle, 2))


def test_a_run_that_is_served_follows_a_rollback_and_goes_on(bert_bundle: Bundle, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "run.sqlite", create=True)
    given = store.open_run("run", bert_bundle.folder, bert_bundle.digest)
    rounds = Rounds(store, given, bert_bundle, settings(bert_bundle, rounds=9, round=Round(1, 1, 30.0), digest_every=1))
    rounds.enrol(1)
    for number in (1, 2, 3):
        rounds.accept(answer(rounds, 0, scalars=(number, 300, -200)))
        rounds.close_if_due()
    wanted = store.entries(1)[0].digest
    other = SqliteStore(tmp_path / "run.sqlite")
    made = history.rollback(other, given, bert_bundle, 1)
    assert rounds.follow()
    assert (made.number, made.round, made.digest) == (4, 4, wanted)
    assert (rounds.ledger.entry, rounds.round, rounds.ledger.parameters.digest()) == (4, 5, wanted)
    assert rounds.accept(answer(rounds, 0, digest=wanted)) is Verdict.ACCEPTED
    assert rounds.close_if_due()
    assert history.verify_run(other, given, bert_bundle)["digests"] == 5


# --- compaction ---


def test_compacting_keeps_headers_chain_and_every_later_digest(run: Run, bert_bundle: Bundle) -> None:
    headers, digests = run.store.headers(1), [digest(run, bert_bundle, number) for number in range(ENTRIES + 1)]
    assert history.compact_all_but(run.store, run.run, bert_bundle, 2) == 4
    assert run.store.headers(1) == headers
    run.store.check_chain(run.run)
    assert [digest(run, bert_bundle, number) for number in (0, 4, 5, 6)] == [digests[number] for number in (0, 4, 5, 6)]
    assert [history.compact_all_but(run.store, run.run, bert_bundle, keep) for keep in (2, 5, 99)] == [0, 0, 0]
    assert history.compact_all_but(run.store, run.run, bert_bundle, 0) == 2
    assert digest(run, bert_bundle, 6) == digests[6]
    assert history.verify_run(run.store, run.run, bert_bundle)["digest"] == digests[6].hex()


def test_the_best_entry_can_be_exported_after_its_terms_are_gone(run: Run, bert_bundle: Bundle, tmp_path: Path) -> None:
    run.store.add_evaluation(1, 2, "validation", {"balanced_loss": 0.5})
    wanted = digest(run, bert_bundle, 2)
    history.compact_all_but(run.store, run.run, bert_bundle, 1)
    made = replay.replica(run.store, run.run, bert_bundle, replay.best_entry(run.store, 1))
    assert (made.entry, made.parameters.digest()) == (2, wanted)
    export(bert_bundle, made, "run", tmp_path / "out")
    assert (tmp_path / "out" / TRAINED).is_file()
    history.compact_all_but(run.store, run.run, bert_bundle, 0)
    assert digest(run, bert_bundle, 2) == wanted


def test_the_lowest_entry_can_be_compared_with_after_its_terms_are_gone(run: Run, bert_bundle: Bundle) -> None:
    """It need not be the best one: a later entry that is as good may be."""
    metrics = {"balanced_loss": 0.5, "gain": 0.5, "gain_error": 0.01, "over": 0, "rise": -0.5, "rise_error": 0.01}
    run.store.add_evaluation(1, 1, "validation", metrics)
    run.store.add_evaluation(1, 3, "validation", metrics | {"balanced_loss": 0.51, "over": 1, "rise": 0.01, "rise_error": 0.02})
    wanted = digest(run, bert_bundle, 1)
    for keep in (2, 1, 0):
        history.compact_all_but(run.store, run.run, bert_bundle, keep)
        assert replay.best_entry(run.store, 1) == 3
        assert digest(run, bert_bundle, 1) == wanted


def test_a_rollback_to_before_what_was_compacted_is_refused_clearly(run: Run, bert_bundle: Bundle) -> None:
    wanted = digest(run, bert_bundle, 4)
    history.compact_all_but(run.store, run.run, bert_bundle, 2)
    for to in (0, 3):
        with pytest.raises(Compacted, match=rf"the terms of entry {to + 1} have been compacted away; entries up to 4 have none"):
            history.rollback(run.store, run.run, bert_bundle, to)
    assert run.store.head(1)[0] == ENTRIES
    assert history.rollback(run.store, run.run, bert_bundle, 4).digest == wanted


def test_old_entries_are_folded_when_a_checkpoint_is_far_enough_behind(run: Run, bert_bundle: Bundle) -> None:
    assert history.compact_when_due(run.store, run.run, 2) == 0
    for number in (3, 4, 5):
        run.store.add_checkpoint(1, replay.replica(run.store, run.run, bert_bundle, number).checkpoint())
    assert history.compact_when_due(run.store, run.run, 4) == 0
    assert history.compact_when_due(run.store, run.run, 2) == 4
    assert (run.store.compacted(1), run.store.checkpoints(1)) == (4, [4, 5])
    assert history.compact_when_due(run.store, run.run, 2) == 0


# --- the commands ---

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(run: Run, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(name, *arguments): exit code, output and errors of `edge-coordinator` on the run."""

    def call(name: str, *arguments: object, of: str = "run") -> tuple[int, str, str]:
        code = main([name, of, f"--store={run.store.path}", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def told(result: tuple[int, str, str]) -> dict[str, Any]:
    assert (result[0], result[2]) == (0, "")
    return json.loads(result[1])


def test_log_as_a_command(command: Command, run: Run) -> None:
    assert told(command("log", "--json"))["entries"] == history.log(run.store, run.run)
    assert [row["entry"] for row in told(command("log", "--json", "--last=2"))["entries"]] == [5, 6]
    assert len(told(command("log", "--json", "--last=0"))["entries"]) == ENTRIES
    command("compact", "--keep=2")
    command("rollback", "--to=4")
    code, out, _ = command("log")
    rows = out.splitlines()
    assert code == 0
    assert rows[0].split() == ["entry", "round", "reports", "chain", "digest", "of", "the", "parameters"]
    assert [row.split()[0] for row in rows[1:]] == ["1", "2", "3", "4", "5", "6", "7"]
    assert rows[1].split()[3:] == [run.store.head(1, 1)[1].hex()[:16], "-", "terms", "compacted"]
    assert rows[7].endswith("  back to round 4")


def test_diff_as_a_command(command: Command, run: Run, bert_bundle: Bundle) -> None:
    assert told(command("diff", 2, 5, "--json"))["groups"] == history.diff(run.store, run.run, bert_bundle, 2, 5)
    assert told(command("diff", 0, "--json"))["groups"] == history.diff(run.store, run.run, bert_bundle, 0, 6)
    code, out, _ = command("diff", 1, 3)
    assert (code, len(out.splitlines())) == (0, 1 + len(bert_bundle.manifest.groups))
    assert command("diff", 0, 7) == (3, "", "edge-coordinator: run 'run' has closed rounds 1 to 6, not 7; 0 is the bundle\n")


def test_verify_as_a_command(command: Command, run: Run, bert_bundle: Bundle, tmp_path: Path) -> None:
    wanted = history.verify_run(run.store, run.run, bert_bundle)
    assert told(command("verify", "--json")) == wanted
    shutil.copytree(bert_bundle.folder, tmp_path / "moved")
    code, out, err = command("verify", f"--bundle={tmp_path / 'moved'}")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "run 'run': from the bundle to entry 6, all terms fit the hash chain",
        "3 digests recomputed, all equal",
        f"digest {wanted['digest']}, chain {wanted['chain']}",
    ]
    command("compact", "--keep=1")
    assert command("verify")[1].startswith("run 'run': from the checkpoint at entry 5 to entry 6, all terms fit the hash chain\n1 digests")
    rewrite(run, changed_terms(run.store.entries(1, 5)[0]), chained=False)
    code, out, err = command("verify")
    assert (code, out) == (StorageError.exit_code, "")
    assert err.startswith("edge-coordinator: entry 6: ")


def test_what_verify_would_not_look_at_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "run", f"--store={run.store.path}", f"--key={'0' * 64}"]) == ConfigError.exit_code
    assert main(["verify", f"--store={run.store.path}"]) == ConfigError.exit_code
    assert capsys.readouterr().err.splitlines() == [
        "edge-coordinator: --key is the key of tiles; give --tiles ADDRESS with it",
        "edge-coordinator: name a run, or tiles with --tiles",
    ]


def test_rollback_as_a_command(command: Command, run: Run, bert_bundle: Bundle) -> None:
    wanted = digest(run, bert_bundle, 3).hex()
    assert told(command("rollback", "--to=3", "--json")) == {"entry": 7, "rolled_back_to": 3, "digest": wanted}
    assert command("rollback", "--to=7") == (0, f"entry 8 takes run 'run' back to round 7: digest {wanted}\n", "")
    code, out, err = command("rollback", "--to=9")
    assert (code, out, err) == (ConfigError.exit_code, "", "edge-coordinator: run 'run' has closed rounds 1 to 8, not 9; 0 is the bundle\n")
    assert (command("status")[0], told(command("status", "--json"))["entry"]) == (0, 8)


def test_compact_as_a_command(command: Command, run: Run) -> None:
    assert command("compact", "--keep=4") == (0, "2 entries folded; the ledger ends at entry 6\n", "")
    assert told(command("compact", "--keep=1", "--json")) == {"compacted": 3}
    assert run.store.compacted(1) == 5
    code, out, err = command("compact", "--keep=-1")
    assert (code, out, err) == (ConfigError.exit_code, "", "edge-coordinator: --keep -1 must not be negative\n")
    code, out, err = command("rollback", "--to=2")
    assert (code, out) == (StorageError.exit_code, "")
    assert "the terms of entry 3 have been compacted away" in err


@pytest.mark.parametrize("name", ["log", "diff", "verify", "rollback", "compact"])
def test_a_run_that_is_not_there_is_told_by_every_command(name: str, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"diff": [0], "rollback": ["--to=0"], "compact": ["--keep=0"]}.get(name, [])
    code, out, err = command(name, *more, of="rum")
    assert (code, out, err) == (8, "", "edge-coordinator: the store holds no run 'rum'; it holds: run\n")
