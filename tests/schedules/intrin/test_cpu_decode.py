import itertools

import numpy as np
import pytest
import tvm
from cpu_kernels import host
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.target.codegen import target_has_features
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout, numerics
from nvfp4_tvm.schedules.intrin.cpu_decode import (
    AVX2Decoder,
    AVX512Decoder,
    PortableDecoder,
    decoder_for,
)

FORMS = [PortableDecoder, AVX2Decoder, AVX512Decoder]


def runnable(form):
    if form is not PortableDecoder and not target_has_features(list(form.features), host()):
        pytest.skip(f"this CPU lacks one of {form.features}")
    return form()


def elementwise(count, lanes, in_dtype, outputs, expressions):
    """Compile out[j, i] = expressions(vector)[j] over vectors of ``lanes`` elements."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        source = T.match_buffer(T.arg("source", T.handle()), (count,), in_dtype)
        result = T.match_buffer(T.arg("result", T.handle()), (outputs, count), "float32")
        with T.serial(count // lanes) as i:
            at = T.ramp(i * lanes, 1, lanes)
            for j, value in enumerate(expressions(T.Bind(source[at]))):
                T.buffer_store(result, value, [j, at])
    kernel = tvm.compile(builder.get(), target=host())["main"]

    def call(data):
        out = tvm.runtime.tensor(np.full((outputs, count), np.nan, np.float32))
        kernel(tvm.runtime.tensor(data), out)
        return out.numpy()

    return call


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a, np.float32).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.mark.parametrize("form", FORMS)
def test_e2m1_every_code_at_every_position_among_other_codes(form):
    decoder = runnable(form)
    rng = np.random.default_rng()
    codes = rng.integers(0, 16, (4096, 128), np.uint8)
    for at, (j, code) in enumerate(itertools.product(range(8), range(16))):
        codes[at % 4096, at // 16 * 8 + j] = code  # at least once each, with random neighbours
    canonical = codes.reshape(-1, 8)
    words = sum(canonical[:, j].astype(np.uint32) << (4 * j) for j in range(8))
    packed = layout.move_bits(words, layout.PACK_MOVES)
    seen = {(j, code) for j in range(8) for code in np.unique(canonical[:, j])}
    assert len(seen) == 128
    decode = elementwise(
        packed.size, decoder.lanes, "uint32", 8, lambda v: [decoder.e2m1(v, j) for j in range(8)]
    )
    same_bits(numerics.decode_e2m1(canonical).T, decode(packed))


@pytest.mark.parametrize("form", FORMS)
def test_e4m3_every_finite_byte(form):
    decoder = runnable(form)
    scales = np.arange(256, dtype=np.uint8)
    got = elementwise(256, 16, "uint8", 1, lambda v: [decoder.e4m3(v)])(scales)[0]
    finite = (scales & 0x7F) != 0x7F
    same_bits(numerics.decode_e4m3(scales)[finite], got[finite])


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"mcpu": "x86-64"}, PortableDecoder),
        ({"mcpu": "haswell"}, AVX2Decoder),
        ({"mcpu": "skylake-avx512"}, AVX512Decoder),
        ({"mcpu": "skylake-avx512", "mattr": ["-avx512f"]}, AVX2Decoder),
        ({"mcpu": "cortex-a76", "mtriple": "aarch64-linux-gnu"}, PortableDecoder),
    ],
)
def test_form_follows_the_features_of_the_target(options, form):
    triple = {} if "mtriple" in options else {"mtriple": "x86_64-linux-gnu"}
    assert type(decoder_for(Target({"kind": "llvm", **triple, **options}))) is form
