"""What is kept of a round besides its terms: whatever is summed over rounds is there in every one, ways back too."""

from made_rounds import Make, append_rollback, close

from coordinator.summary import NOTHING_DONE


def test_a_way_back_counts_as_a_round_of_nothing(make_rounds: Make) -> None:
    rounds = make_rounds()
    for _ in range(2):
        close(rounds, devices=3)
    append_rollback(rounds)
    *closed, back = rounds.store.summaries(rounds.run.id)
    numbers = {name for name, value in closed[-1].items() if isinstance(value, int | float)} - {"round", "entry"}
    assert numbers <= back.keys(), numbers - back.keys()
    assert all(not back[name] for name in NOTHING_DONE)
