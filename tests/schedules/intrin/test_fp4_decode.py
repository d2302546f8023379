"""The tensor-core decoder, exhaustively: every code in every place of a word, under every scale byte."""

import itertools

import numpy as np
import pytest
import tvm
from relax_modules import tensor
from tvm import te
from tvm.script import tirx as T

from nvfp4_tvm import layout
from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.codes import E2M1_VALUES, E4M3_VALUES
from nvfp4_tvm.schedules.intrin import fp4_decode
from nvfp4_tvm.schedules.intrin.fp4_decode import EPILOGUE_FACTOR
from nvfp4_tvm.target import cuda_target

DTYPES = ["bfloat16", "float16"]
#: Finite non-negative E4M3 numbers.
BYTES = 0x7F


def words_with_every_code():
    """uint32 [code, place, scale byte]: that code in that place, anything in the others."""
    rng = np.random.default_rng(0)
    canonical = rng.integers(0, 2**32, (16, 8, BYTES), dtype=np.uint32)
    for code, place in itertools.product(range(16), range(8)):
        others = ~np.uint32(0xF << (4 * place))
        canonical[code, place] = (canonical[code, place] & others) | np.uint32(code << (4 * place))
    return layout.move_bits(canonical, layout.PACK_MOVES)


def scale_words(group_size):
    """uint32 [byte, group]: a word in which both rows' scales of the group are the byte, and nothing else is."""
    byte = np.arange(BYTES, dtype=np.uint32)
    places = [[0, 1], [2, 3]] if group_size == 32 else [[0, 2], [1, 3]]
    words = np.full((BYTES, 2), 0x5A5A5A5A, np.uint32)
    for group, rows in enumerate(places):
        for row in rows:
            words[:, group] &= ~np.uint32(0xFF << (8 * row))
            words[:, group] |= byte << np.uint32(8 * row)
    return words


def expected():
    """float32 [code, place, byte], and whether each is minus zero or less."""
    values = E2M1_VALUES[:, None] * E4M3_VALUES[:BYTES]
    return np.broadcast_to(values[:, None, :] / np.float32(EPILOGUE_FACTOR), (16, 8, BYTES))


def check(found):
    np.testing.assert_array_equal(found, expected())
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [16, 32])
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("row", [0, 1])
def test_every_code_and_scale_on_the_cpu(dtype, group_size, group, row):
    words = te.placeholder((16, 8, BYTES), "uint32")
    scales = te.placeholder((BYTES, 2), "uint32")

    def value(code, place, byte):
        bytes_ = fp4_decode.scale_bytes(scales[byte, group], group, group_size)
        scale = fp4_decode.decoded_scale(bytes_, row, dtype)
        register = fp4_decode.decoded(words[code, place, byte], place // 2, scale, dtype)
        return fp4_decode.half_value(register, place % 2, dtype)

    function = te.create_prim_func([words, scales, te.compute((16, 8, BYTES), value)])
    out = tensor(np.full((16, 8, BYTES), np.nan, np.float32))
    arrays = words_with_every_code(), scale_words(group_size)
    tvm.compile(tvm.IRModule({"main": function}), target="llvm")["main"](*map(tensor, arrays), out)
    check(out.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_is_a_pair_of_equal_halves(dtype):
    scales = te.placeholder((BYTES,), "uint32")
    pair = te.compute((BYTES,), lambda i: fp4_decode.decoded_scale(scales[i], 0, dtype))
    out = tensor(np.zeros(BYTES, np.uint32))
    function = te.create_prim_func([scales, pair])
    tvm.compile(tvm.IRModule({"main": function}), target="llvm")["main"](
        tensor(np.arange(BYTES, dtype=np.uint32)), out
    )
    np.testing.assert_array_equal(out.numpy() >> 16, out.numpy() & 0xFFFF)
    assert len(np.unique(out.numpy())) == BYTES


def cuda_kernel(dtype, group, row):
    """A kernel that decodes every word under every scale, which row and group of the scale word is fixed."""
    source = fp4_decode.cuda_decoder(dtype)
    decode, scales_of = fp4_decode.decode_name(dtype), fp4_decode.scales_name(dtype)

    @T.prim_func(s_tir=True)
    def kernel(
        words: T.Buffer((16, 8, BYTES), "uint32"),
        scales: T.Buffer((BYTES, 2), "uint32"),
        out: T.Buffer((16, 8, BYTES, 4), "uint32"),
    ):
        for code in T.thread_binding(16, "blockIdx.y"):
            for place in T.thread_binding(8, "blockIdx.x"):
                for byte in T.thread_binding(BYTES, "threadIdx.x"):
                    with T.sblock("decode"):
                        vc, vp, vb = T.axis.remap("SSS", [code, place, byte])
                        s = T.sblock_alloc_buffer((4,), "uint32", scope="local")
                        d = T.sblock_alloc_buffer((4,), "uint32", scope="local")
                        T.reads(words[vc, vp, vb], scales[vb, group])
                        T.writes(out[vc, vp, vb, 0:4])
                        T.evaluate(
                            T.cuda.func_call(
                                scales_of, s[0], s[1], s[2], s[3], scales[vb, group], source_code=source
                            )
                        )
                        T.evaluate(
                            T.cuda.func_call(
                                decode,
                                d[0],
                                d[1],
                                d[2],
                                d[3],
                                words[vc, vp, vb],
                                s[group * 2 + row],
                                source_code=source,
                            )
                        )
                        for i in T.unroll(4):
                            out[vc, vp, vb, i] = d[i]

    return kernel


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cuda_form_compiles_to_few_instructions(dtype):
    with cuda_machine_code("sm_89", ptx=False) as log:
        tvm.compile(tvm.IRModule({"main": cuda_kernel(dtype, 1, 1)}), cuda_target("sm_89").target)
    counts = count_instructions(sass(log.modules[0].fatbin, "sm_89"))
    # Four products of codes, one or two of scales, each of a pair
    products = sum(n for name, n in counts.items() if name.startswith(("HMUL2", "HFMA2")))
    assert 5 <= products <= 8


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("row", [0, 1])
def test_every_code_and_scale_on_the_gpu(dtype, group, row):
    capability = tvm.cuda(0).compute_version.replace(".", "")
    target = tvm.target.Target({"kind": "cuda", "arch": f"sm_{capability}"}, host="llvm")
    function = tvm.compile(tvm.IRModule({"main": cuda_kernel(dtype, group, row)}), target)["main"]
    device = tvm.cuda(0)
    arrays = words_with_every_code(), scale_words(16), np.zeros((16, 8, BYTES, 4), np.uint32)
    inputs = [tvm.runtime.tensor(array, device) for array in arrays]
    function(*inputs)
    registers = inputs[2].numpy()
    place = np.arange(8)
    halves = registers[:, place, :, place // 2] >> (16 * (place % 2))[:, None, None].astype(np.uint32)
    bits = np.moveaxis(halves, 0, 1).astype(np.uint16)
    if dtype == "bfloat16":
        found = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        found = bits.view(np.float16).astype(np.float32)
    check(found)
