"""Packing rows of tensors into the parameters of a layer."""

import ml_dtypes
import numpy as np
import pytest

from nvfp4_tvm import layout
from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.checkpoint.base import NVFP4Tensor
from nvfp4_tvm.mlc.pack import pack_rows, quantize_parts
from nvfp4_tvm.quantize import quantize_checkpoint


def tensor(N, K, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    scales = rng.integers(1, 0x7F, (N, K // 16), np.uint8)
    return NVFP4Tensor(f"part{seed}", codes, scales, np.float32(rng.uniform(1, 2)))


def expected(tensors, rows):
    """The packing of rows by its definition in `layout`."""
    codes, scales = (np.concatenate([getattr(t, field) for t in tensors]) for field in ("codes", "scales"))
    spread = np.concatenate([np.full(t.shape[0], t.global_scale) for t in tensors])
    weight = layout.pack(codes[rows], scales[rows], spread[rows])
    return weight.words, weight.scales, weight.global_scale


@pytest.mark.parametrize("K", [16, 128, 272])
@pytest.mark.parametrize("choose", ["all", "shuffled", "some", "repeated"])
def test_rows(K, choose):
    tensors = [tensor(N, K, seed) for seed, N in enumerate((32, 16, 19))]
    rows = {
        "all": np.arange(67),
        "shuffled": np.random.default_rng(5).permutation(67),
        "some": np.arange(3, 40),
        "repeated": np.array([0, 66, 66, 5]),
    }[choose]
    for got, want in zip(pack_rows(tensors, rows), expected(tensors, rows), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("N", [16, 24])
def test_experts(N):
    tensors = [tensor(N // 2, 128, seed) for seed in range(6)]
    rows = np.arange(3 * N).reshape(3, N)
    words, scales, global_scale = pack_rows(tensors, rows)
    assert words.shape == (3, *layout.words_shape(N, 128))
    assert global_scale.shape == (3, *layout.global_scale_shape(N))
    for expert in range(3):
        for got, want in zip((words, scales, global_scale), expected(tensors, rows[expert]), strict=True):
            np.testing.assert_array_equal(got[expert], want)


def test_weights_are_quantized_as_the_command_line_quantizes_a_checkpoint(plain, tmp_path):
    quantize_checkpoint(plain, tmp_path / "quantized")
    source, quantized = open_checkpoint(plain), open_checkpoint(tmp_path / "quantized")
    for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",)):
        modules = [f"model.layers.0.{part}" for part in parts]
        tensors = quantize_parts({module: source.tensor(f"{module}.weight") for module in modules})
        assert len({float(t.global_scale) for t in tensors}) == 1
        for got, module in zip(tensors, modules, strict=True):
            want = quantized.nvfp4(module)
            np.testing.assert_array_equal(got.codes, want.codes)
            np.testing.assert_array_equal(got.scales, want.scales)
            assert got.global_scale == want.global_scale


def test_weights_that_cannot_be_quantized_are_named():
    weight = np.ones((16, 16), ml_dtypes.bfloat16)
    weight[3, 4] = np.nan
    with pytest.raises(ValueError, match="down_proj"):
        quantize_parts({"model.down_proj": weight})
