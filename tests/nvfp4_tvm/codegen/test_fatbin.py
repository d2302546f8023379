"""Joining images and finding them again."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm.codegen.fatbin import FATBIN_MAGIC, extract_fatbins, make_fatbin
from nvfp4_tvm.codegen.nvrtc import Compiled, compile_source
from nvfp4_tvm.codegen.sass import list_images


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_source('extern "C" __global__ void k(float* a) { a[threadIdx.x] *= 2.0f; }\n', "sm_89")


def test_cubin_and_ptx(compiled):
    fatbin = make_fatbin([("sm_89", compiled.cubin)], [("sm_89", compiled.ptx)])
    assert fatbin.startswith(FATBIN_MAGIC)
    assert list_images(fatbin) == [("cubin", "sm_89"), ("ptx", "sm_89")]
    # TVM takes an image that begins with "/" for PTX text
    assert not fatbin.startswith(b"/")


def test_several_architectures(compiled):
    other = compile_source('extern "C" __global__ void k(float* a) { a[threadIdx.x] *= 2.0f; }\n', "sm_90a")
    fatbin = make_fatbin([("sm_89", compiled.cubin), ("sm_90a", other.cubin)])
    assert list_images(fatbin) == [("cubin", "sm_89"), ("cubin", "sm_90a")]


def test_wrong_architecture_is_refused(compiled):
    with pytest.raises(RuntimeError, match="nvFatbinAddCubin"):
        make_fatbin([("sm_80", compiled.cubin)])


def test_garbage_is_refused():
    with pytest.raises(RuntimeError, match="nvFatbin"):
        make_fatbin([("sm_80", b"not an ELF file, but long enough to look like something" * 4)])


def test_extract(compiled):
    one = make_fatbin([("sm_89", compiled.cubin)], [("sm_89", compiled.ptx)])
    two = make_fatbin([("sm_89", compiled.cubin)])
    # The magic alone, and a header cut short, are not images
    noise = FATBIN_MAGIC + b"\xff" * 40
    data = b"ELF" + noise + one + os.urandom(100).replace(FATBIN_MAGIC, b"") + two + FATBIN_MAGIC
    assert extract_fatbins(data) == [one, two]
    assert extract_fatbins(one) == [one]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from([FATBIN_MAGIC, b"\x01\x00\x10\x00", b"\0" * 4, b"\xff" * 4, b"x"]), max_size=12)
)
def test_extract_survives_anything(parts):
    data = b"".join(parts)
    for found in extract_fatbins(data):
        assert found.startswith(FATBIN_MAGIC) and found in data
