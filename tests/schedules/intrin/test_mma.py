"""What the intrinsics of the mma.sync GEMM mean: each desc run on llvm. The GEMM's tests on a GPU run the CUDA."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, tensor
from tvm.s_tir import TensorIntrin

from nvfp4_tvm import layout
from nvfp4_tvm.codes import E2M1_VALUES, E4M3_VALUES
from nvfp4_tvm.schedules.intrin import mma

DTYPES = ["bfloat16", "float16"]


def run(name, *arrays):
    """Run a desc; all buffers are inputs, the last is also the result."""
    desc = TensorIntrin.get(name).desc
    tensors = [tensor(array) for array in arrays]
    tvm.compile(tvm.IRModule({"main": desc}), target="llvm")["main"](*tensors)
    return tensors[-1].numpy()


def pairs(low, high):
    """uint32 of two arrays of 16-bit numbers."""
    return low.view(np.uint16).astype(np.uint32) | high.view(np.uint16).astype(np.uint32) << 16


def a_fragment(matrix):
    """[16, 16] as the PTX ISA lays A out: a0 (g, 2q), a1 (g + 8, 2q), a2 (g, 2q + 8), a3 (g + 8, 2q + 8)."""
    lane = np.arange(32)
    g, q = lane // 4, lane % 4
    places = [(g, 2 * q), (g + 8, 2 * q), (g, 2 * q + 8), (g + 8, 2 * q + 8)]
    return np.stack([pairs(matrix[row, k], matrix[row, k + 1]) for row, k in places], axis=1)


def b_fragment(matrix):
    """[tokens 8, 16] as the PTX ISA lays B out: b0 (k 2q, token g), b1 (k 2q + 8, token g)."""
    lane = np.arange(32)
    g, q = lane // 4, lane % 4
    return np.stack([pairs(matrix[g, k], matrix[g, k + 1]) for k in (2 * q, 2 * q + 8)], axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mma(dtype):
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 8, (16, 16)).astype(NUMPY[dtype])
    b = rng.integers(-8, 8, (8, 16)).astype(NUMPY[dtype])
    start = rng.integers(-8, 8, (32, 4)).astype(np.float32)
    found = run(mma.mma(dtype), a_fragment(a), b_fragment(b), start)
    product = a.astype(np.float32) @ b.astype(np.float32).T
    lane, register = np.ix_(np.arange(32), np.arange(4))
    row, token = mma.c_origin(lane, register)
    np.testing.assert_array_equal(found - start, product[row, token])
    assert len({(int(r), int(t)) for r, t in zip(row.flat, token.flat, strict=False)}) <= 128


def test_accumulators_cover_the_tile_once():
    lane, register = np.meshgrid(np.arange(32), np.arange(4), indexing="ij")
    row, token = mma.c_origin(lane, register)
    assert len(set(zip(row.flat, token.flat, strict=True))) == 16 * 8


def test_fill():
    assert not run(mma.fill(), np.full((32, 4), np.nan, np.float32)).any()


def test_load():
    values = np.arange(8, dtype=np.uint16) * 0x1111
    np.testing.assert_array_equal(
        run(mma.load(), values, np.zeros(4, np.uint32)), pairs(values[::2], values[1::2])
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales(dtype):
    byte = np.arange(0, 127, 4, dtype=np.uint32)[:32]
    found = run(mma.scales(dtype), byte | (byte[::-1] << np.uint32(16)), np.zeros((32, 2), np.uint32))
    for row, bytes_ in enumerate((byte, byte[::-1])):
        bits = found[:, row]
        np.testing.assert_array_equal(bits >> 16, bits & 0xFFFF)
        if dtype == "bfloat16":
            values, factor = (bits & 0xFFFF).astype(np.uint16).view(ml_dtypes.bfloat16), 2.0**119
        else:
            values, factor = (bits & 0xFFFF).astype(np.uint16).view(np.float16), 2.0**7
        np.testing.assert_array_equal(
            values.astype(np.float64), E4M3_VALUES[bytes_].astype(np.float64) * factor
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_gives_the_a_fragments_of_two_k16_steps(dtype):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (16, 128), dtype=np.uint8)
    words = layout.pack_codes(codes[:, ::2] | codes[:, 1::2] << 4)[0, 0]
    one = np.full((32, 2), 0x38, np.uint32)  # 1.0
    scale = run(mma.scales(dtype), one[:, 0] * np.uint32(0x10001), np.zeros((32, 2), np.uint32))
    values = (E2M1_VALUES[codes] / 128).astype(NUMPY[dtype])
    for i in range(4):
        found = run(
            mma.decode(dtype),
            np.ascontiguousarray(words[:, :, i : i + 1]),
            scale,
            np.zeros((2, 32, 4), np.uint32),
        )
        # Position 8q + 4j + .. of the lanes' words stands for k = 2q + .. of step j: any order of k is a sum
        q, within = np.meshgrid(np.arange(4), np.arange(8), indexing="ij")
        k = 32 * q + 8 * i + within
        for j in range(2):
            part = k[:, 4 * j : 4 * j + 4]
            order = np.concatenate([part[:, :2].ravel(), part[:, 2:].ravel()])
            np.testing.assert_array_equal(found[j], a_fragment(values[:, order]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose(dtype):
    matrix = np.arange(64).reshape(8, 8).astype(NUMPY[dtype])  # [row of W, token]
    lane = np.arange(32)
    g, q = lane // 4, lane % 4
    rows = np.stack([matrix[g, 2 * q], matrix[g, 2 * q + 1]], axis=1)
    tokens = np.stack([matrix[2 * q, g], matrix[2 * q + 1, g]], axis=1)
    found = run(mma.transpose(dtype), rows, np.zeros((32, 2), NUMPY[dtype]))
    np.testing.assert_array_equal(found.astype(np.float32), tokens.astype(np.float32))
