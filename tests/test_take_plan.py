"""Which prompts and anchors a round draws."""

from hypothesis import given
from hypothesis import strategies as st

from loop.steps.sample import draw


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 3))
def test_nothing_comes_twice_in_a_round_and_everything_before_anything_comes_again(num_rows, num, seed):
    rows = [{"id": i} for i in range(num_rows)]
    rounds = [[row["id"] for row in draw(rows, num, k, seed, "prompts")] for k in range(1, 9)]
    seen = [0] * num_rows
    for picked in rounds:
        assert len(set(picked)) == len(picked) == min(num, num_rows)
        for i in picked:
            seen[i] += 1
        assert max(seen) - min(seen) <= 1
    assert rounds == [[row["id"] for row in draw(rows, num, k, seed, "prompts")] for k in range(1, 9)]
