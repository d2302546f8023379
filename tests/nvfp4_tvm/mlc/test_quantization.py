"""The entries in QUANTIZATION."""

import pytest

from nvfp4_tvm.mlc.quantization import ENTRIES, NVFP4Quantize


def test_names_and_dtypes():
    dtypes = {entry.name: (entry.kind, entry.model_dtype) for entry in ENTRIES}
    assert dtypes["nvfp4_skel"] == ("nvfp4", "bfloat16")
    assert dtypes["nvfp4_skel_f16"] == ("nvfp4", "float16")


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="found kind 'awq', expected 'nvfp4'"):
        NVFP4Quantize("x", "awq", "float16")
