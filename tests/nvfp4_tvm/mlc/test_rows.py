"""Which rows a function of weights takes."""

import numpy as np
import pytest

from nvfp4_tvm.mlc.rows import source_rows

Q, KV, K = (32, 48), (16, 48), 48


def test_parts_one_after_the_other():
    def concatenate(*parts):
        return np.concatenate(parts, axis=0).astype("float16")

    np.testing.assert_array_equal(source_rows(concatenate, [Q, KV, KV]), np.arange(64))


def test_heads_in_another_order():
    def by_kind(w):  # GPT-NeoX stores q, k, v of a head together
        heads = np.split(np.reshape(w, [4, 3 * 4, -1]), 3, axis=1)
        return np.reshape(np.concatenate(heads, axis=0), w.shape).astype("float16")

    rows = source_rows(by_kind, [(48, K)])
    weight = np.random.default_rng(0).standard_normal((48, K)).astype(np.float16)
    np.testing.assert_array_equal(weight[rows], by_kind(weight))
    assert not np.array_equal(rows, np.arange(48))


def test_a_function_that_knows_the_number_of_columns():
    def reshaped(w):
        return w.reshape(4, 2, 4, K).transpose(1, 0, 2, 3).reshape(-1, K)

    rows = source_rows(reshaped, [(32, K)])
    weight = np.random.default_rng(0).standard_normal((32, K))
    np.testing.assert_array_equal(weight[rows], reshaped(weight))


def test_some_rows():
    np.testing.assert_array_equal(source_rows(lambda w: w[8:24], [Q]), np.arange(8, 24))


def test_experts_are_stacked():
    def experts(*parts):
        return np.stack([np.concatenate(parts[2 * e : 2 * e + 2], axis=0) for e in range(2)])

    rows = source_rows(experts, [KV] * 4)
    np.testing.assert_array_equal(rows, np.arange(64).reshape(2, 32))
    np.testing.assert_array_equal(source_rows(lambda w: w, [(2, 16, K)]), np.arange(32).reshape(2, 16))


@pytest.mark.parametrize(
    "function",
    [
        lambda w: w.transpose().astype("float16"),
        lambda w: w[:, ::-1],
        lambda w: w + 1,
        lambda w: w * 2.0,
        lambda w: w[:, :16],
        lambda w: np.concatenate([w, w], axis=1),
        lambda w: w.reshape(-1),
        lambda w: w.reshape(3, 5),
    ],
    ids=["transposed", "reversed", "plus one", "twice", "some columns", "wider", "flat", "impossible"],
)
def test_anything_else_is_none(function):
    assert source_rows(function, [Q]) is None
