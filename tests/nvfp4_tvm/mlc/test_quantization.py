"""The entries in QUANTIZATION."""

import pytest

from nvfp4_tvm.mlc.quantization import ENTRIES, NVFP4Quantize


def test_names_and_dtypes():
    dtypes = {entry.name: (entry.kind, entry.model_dtype) for entry in ENTRIES}
    assert dtypes["nvfp4_skel"] == ("nvfp4", "bfloat16")
    assert dtypes["nvfp4_skel_f16"] == ("nvfp4", "float16")


def test_the_full_ones_quantize_head_and_embedding():
    for entry in ENTRIES:
        assert entry.quantize_embedding == entry.quantize_final_fc == ("full" in entry.name)
        assert entry.model_dtype == ("float16" if entry.name.endswith("_f16") else "bfloat16")


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="found kind 'awq', expected 'nvfp4'"):
        NVFP4Quantize("x", "awq", "float16")
