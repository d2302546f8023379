"""The portable decoder, exhaustively: every code in every place of a word, every scale byte."""

import numpy as np
import tvm
from relax_modules import tensor
from tvm import te

from nvfp4_tvm import layout
from nvfp4_tvm.codes import E2M1_VALUES, E4M3_VALUES
from nvfp4_tvm.schedules.intrin.decode import e2m1_to_float32, e4m3_to_float32, packed_code, packed_weight


def run(function, *arrays):
    tvm.compile(tvm.IRModule({"main": function}), target="llvm")["main"](*arrays)


def test_every_code_whatever_the_bits_above_it():
    words = np.arange(16, dtype=np.uint32) | np.uint32(0xABCDEF50)
    source = te.placeholder((16,), "uint32")
    out = tensor(np.full(16, np.nan, np.float32))
    run(
        te.create_prim_func([source, te.compute((16,), lambda i: e2m1_to_float32(source[i]))]),
        tensor(words),
        out,
    )
    np.testing.assert_array_equal(out.numpy(), E2M1_VALUES)
    np.testing.assert_array_equal(np.signbit(out.numpy()), np.signbit(E2M1_VALUES))


def test_every_finite_scale_byte():
    words = np.arange(256, dtype=np.uint32) | np.uint32(0x12345600)
    source = te.placeholder((256,), "uint32")
    out = tensor(np.full(256, np.nan, np.float32))
    run(
        te.create_prim_func([source, te.compute((256,), lambda i: e4m3_to_float32(source[i]))]),
        tensor(words),
        out,
    )
    finite = np.isfinite(E4M3_VALUES)
    assert finite.sum() == 254
    np.testing.assert_array_equal(out.numpy()[finite], E4M3_VALUES[finite])


def test_every_place_of_a_word():
    canonical = np.array(
        [c << (4 * j) | (~(0xF << (4 * j)) & 0xFFFFFFFF) for j in range(8) for c in range(16)], np.uint32
    )
    packed = layout.move_bits(canonical, layout.PACK_MOVES)
    source = te.placeholder((128,), "uint32")
    compute = te.compute((128,), lambda i: packed_code(source[i], i // 16))
    out = tensor(np.full(128, 99, np.uint32))
    run(te.create_prim_func([source, compute]), tensor(packed), out)
    np.testing.assert_array_equal(out.numpy(), np.tile(np.arange(16), 8))


def test_element_of_a_packed_weight():
    # Every code under every finite non-negative scale, at rows and columns that cross tiles.
    rng = np.random.default_rng(0)
    N, K = 127, 272
    codes = rng.integers(0, 256, (N, K // 2), dtype=np.uint8)
    codes[:, :8] = np.arange(16, dtype=np.uint8).reshape(8, 2) @ np.array([1, 16], np.uint8)
    scales = rng.integers(0, 127, (N, K // 16), dtype=np.uint8)
    scales[:, 0] = np.arange(127)
    packed = layout.pack(codes, scales, 1.0)
    words = te.placeholder(packed.words.shape, "uint32")
    block_scales = te.placeholder(packed.scales.shape, "uint32")
    compute = te.compute((N, K), lambda n, k: packed_weight(words, block_scales, n, k))
    out = tensor(np.full((N, K), np.nan, np.float32))
    run(te.create_prim_func([words, block_scales, compute]), tensor(packed.words), tensor(packed.scales), out)
    unpacked = np.stack([codes & 15, codes >> 4], -1).reshape(N, K)
    expected = E2M1_VALUES[unpacked] * np.repeat(E4M3_VALUES[scales], 16, axis=1)
    np.testing.assert_array_equal(out.numpy(), expected)
