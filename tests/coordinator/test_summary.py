"""What is kept of a round besides its terms: whatever is summed over rounds is there in every one, ways back too."""

from made_rounds import Make, close

from coordinator import history


def test_a_way_back_counts_as_a_round_of_nothing(make_rounds: Make) -> None:
    rounds = make_rounds()
    for _ in range(2):
        close(rounds, devices=3)
    history.rollback(rounds.store, rounds.run, rounds.bundle, 0)
    *closed, back = rounds.store.summaries(rounds.run.id)
    numbers = {name for name, value in closed[-1].items() if isinstance(value, int | float)} - {"round", "entry"}
    assert numbers <= back.keys(), numbers - back.keys()
