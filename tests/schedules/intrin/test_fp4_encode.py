import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.intrin import fp4_encode
from nvfp4_tvm.schedules.intrin.fp4_encode import cuda_pack, pack_word


def words():
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    return np.concatenate(
        [
            bits,
            ~bits,
            np.uint32([0, 0xFFFFFFFF]),
            np.random.default_rng(0).integers(0, 2**32, 1 << 20, np.uint32),
        ]
    )


def test_permutes_as_the_layout_says():
    np.testing.assert_array_equal(pack_word(words()), layout.move_bits(words(), layout.PACK_MOVES))


def test_on_tir_expressions():
    @T.prim_func(s_tir=True)
    def function(a: T.Buffer((64,), "uint32"), b: T.Buffer((64,), "uint32")):
        for i in range(64):
            b[i] = pack_word(a[i], T.uint32)

    some = words()[:64].copy()
    found = tvm.runtime.tensor(np.zeros_like(some))
    tvm.compile(function, target="llvm")(tvm.runtime.tensor(some), found)
    np.testing.assert_array_equal(found.numpy(), layout.move_bits(some, layout.PACK_MOVES))


def test_products_do_not_meet():
    """What the multiplications rely on: no bit of a product comes from two, and signs stay off the magnitudes."""
    for bits, factor in (
        (fp4_encode.MAGNITUDES, fp4_encode.MAGNITUDE_FACTOR),
        (fp4_encode.SIGNS, fp4_encode.SIGN_FACTOR),
    ):
        places = [b + f for b in range(32) if bits >> b & 1 for f in range(32) if factor >> f & 1]
        assert len(places) == len(set(places)) == 3 * bin(bits).count("1")
    assert fp4_encode.MAGNITUDES_MOVED < 1 << 25


@pytest.mark.parametrize(
    "name", ["MAGNITUDES", "SIGNS", "MAGNITUDE_FACTOR", "SIGN_FACTOR", "MAGNITUDES_MOVED"]
)
def test_the_cuda_form_has_the_same_constants(name):
    assert f"{getattr(fp4_encode, name):#x}u" in cuda_pack()
