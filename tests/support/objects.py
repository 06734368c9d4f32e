"""Labelled objects, as hypothesis draws them."""

from hypothesis import strategies as st

NAMES = ["dog", "cat", "cup", "king"]
box = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(20, 80), st.integers(20, 80)).map(
    lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3])
)
labelled_objects = st.lists(st.tuples(st.sampled_from(NAMES), box), min_size=0, max_size=6)
