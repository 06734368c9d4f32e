import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from referent.core.packing import Bucket, pack
from referent.core.prompts import ExpressionError

BUCKETS = (Bucket(8, 1), Bucket(16, 2), Bucket(32, 4))
PREFIX = [1, 9, 9, 9]


@given(st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=28), min_size=1, max_size=20))
def test_every_expression_is_in_one_row_in_order(suffixes: list[list[int]]) -> None:
    rows = pack(PREFIX, suffixes, BUCKETS, pad_token_id=0)
    unpacked = []
    for row in rows:
        assert Bucket(len(row.input_ids), len(row.loc_positions)) in BUCKETS
        assert row.input_ids[row.segment_ids == 0].tolist() == PREFIX
        assert (row.input_ids[row.segment_ids == -1] == 0).all()
        for slot in range(row.expressions):
            suffix = row.input_ids[row.segment_ids == slot + 1].tolist()
            assert row.input_ids[row.loc_positions[slot]] == suffix[-1]
            assert row.segment_ids[row.loc_positions[slot]] == slot + 1
            unpacked.append(suffix)
        assert (row.loc_positions[row.expressions :] == 0).all()
    assert unpacked == suffixes


def test_the_smallest_bucket_that_holds_a_row_is_used() -> None:
    assert len(pack(PREFIX, [[5] * 4], BUCKETS, 0)[0].input_ids) == 8
    assert len(pack(PREFIX, [[5] * 5], BUCKETS, 0)[0].input_ids) == 16
    assert len(pack(PREFIX, [[5]] * 3, BUCKETS, 0)[0].input_ids) == 32


def test_an_expression_that_fits_no_bucket_is_named_with_the_limit() -> None:
    with pytest.raises(ExpressionError, match=r"29 tokens .* limit is 28"):
        pack(PREFIX, [[5], [5] * 29], BUCKETS, 0)


def test_dtypes_are_those_of_the_contract() -> None:
    row = pack(PREFIX, [[5]], BUCKETS, 0)[0]
    assert {array.dtype for array in (row.input_ids, row.segment_ids, row.loc_positions)} == {np.dtype(np.int64)}
