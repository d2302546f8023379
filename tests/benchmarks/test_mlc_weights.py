import benchmark_modules  # noqa: F401
import numpy as np
import pytest
import torch

from benchmarks.mlc_weights import STD, Weights
from nvfp4_tvm import layout, numerics

N, K = 48, 256
PARAMS = [
    {"name": "a.words", "shape": list(layout.words_shape(N, K)), "dtype": "uint32"},
    {"name": "a.scales", "shape": list(layout.scales_shape(N, K)), "dtype": "uint32"},
    {"name": "a.global_scale", "shape": list(layout.global_scale_shape(N)), "dtype": "float32"},
    {"name": "b.weight", "shape": ["vocab_size", 64], "dtype": "bfloat16"},
    {"name": "norm.weight", "shape": [64], "dtype": "float16"},
    {"name": "c.q_weight", "shape": [32, 8], "dtype": "uint32"},
    {"name": "c.q_scale", "shape": [32, 2], "dtype": "float16"},
]


@pytest.fixture
def weights():
    return Weights(PARAMS, {"vocab_size": 96}, "cpu")


def test_parameters_have_the_shapes_and_dtypes_of_the_metadata(weights):
    tensors = weights.tensors()
    for tensor, param in zip(tensors, PARAMS, strict=True):
        shape = [96 if extent == "vocab_size" else extent for extent in param["shape"]]
        assert list(tensor.shape) == shape and str(tensor.dtype) == param["dtype"]


def test_float32_is_what_the_packed_parameters_stand_for(weights):
    arrays = {param["name"]: tensor.numpy() for param, tensor in zip(PARAMS, weights.tensors(), strict=True)}
    packed = layout.PackedWeight(
        N, K, *(arrays[f"a.{field}"] for field in ("words", "scales", "global_scale"))
    )
    codes, scales, rows = layout.unpack(packed)
    expected = numerics.dequantize(codes, scales, np.float32(1), np.float64) * rows[:, None]
    np.testing.assert_allclose(weights.float32("a").numpy(), expected, rtol=2**-23)
    assert abs(expected.std() / STD - 1) < 0.05
    assert torch.equal(weights.float32("b"), torch.from_dlpack(weights.tensors()[3]).float())


def test_layers_differ_and_are_the_same_each_time(weights):
    other = Weights([{**param, "name": "z" + param["name"]} for param in PARAMS], {"vocab_size": 96}, "cpu")
    pairs = zip(PARAMS, weights.tensors(), weights.tensors(), other.tensors(), strict=True)
    for param, first, second, third in pairs:
        np.testing.assert_array_equal(first.numpy(), second.numpy())
        constant = param["name"] in ("a.global_scale", "c.q_scale")
        assert np.array_equal(first.numpy(), third.numpy()) == constant, param["name"]


def test_float32_of_q4f16_1_is_what_its_words_hold(weights):
    arrays = {param["name"]: tensor.numpy() for param, tensor in zip(PARAMS, weights.tensors(), strict=True)}
    words, scales = arrays["c.q_weight"], arrays["c.q_scale"].astype(np.float64)
    numbers = np.stack([words >> 4 * i & 15 for i in range(8)], -1).reshape(32, 64).astype(int)
    assert numbers.min() == 0 and numbers.max() == 14
    expected = (numbers - 7) * scales.repeat(32, 1)
    np.testing.assert_allclose(weights.float32("c").numpy(), expected, rtol=2**-23)
    assert abs(expected.std() / STD - 1) < 0.05 and abs(expected.mean()) < 0.1 * STD


def test_a_layer_that_is_not_there_has_no_float32(weights):
    with pytest.raises(KeyError):
        weights.float32("d")
