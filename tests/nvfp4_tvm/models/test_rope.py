import ml_dtypes
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nvfp4_tvm.errors import NVFP4Error
from nvfp4_tvm.models.rope import Rope, split_rotary


def reference(parameters, head_dim, context):
    """transformers' frequencies and attention factor."""
    config = LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", **parameters},
    )
    if parameters.get("rope_type", "default") == "default":
        inv_freq, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        inv_freq, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    return inv_freq.numpy(), factor


def check(parameters, head_dim=64, context=4096, rtol=1e-6):
    rope = Rope.from_hf({"rope_parameters": parameters}, head_dim, context)
    inv_freq, factor = reference(parameters, head_dim, context)
    assert rope.table.dtype == np.float32 and rope.table.shape == (head_dim // 2,)
    np.testing.assert_allclose(rope.table, inv_freq, rtol=rtol)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-9)


THETA = st.floats(1000.0, 1e7)
FACTOR = st.floats(1.0, 64.0)
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4}


@settings(deadline=None, max_examples=30)
@given(theta=THETA, head_dim=st.sampled_from([16, 32, 64, 80, 96, 128, 256]))
def test_default(theta, head_dim):
    check({"rope_type": "default", "rope_theta": theta}, head_dim)


@settings(deadline=None, max_examples=30)
@given(theta=THETA, factor=FACTOR)
def test_linear(theta, factor):
    check({"rope_type": "linear", "rope_theta": theta, "factor": factor})


@settings(deadline=None, max_examples=50)
@given(
    theta=THETA, factor=FACTOR, low=st.floats(0.5, 4.0), gap=st.floats(0.5, 30.0),
    original=st.sampled_from([64, 1000, 8192]), head_dim=st.sampled_from([32, 128]),
)  # fmt: skip
def test_llama3(theta, factor, low, gap, original, head_dim):
    parameters = {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
        "high_freq_factor": low + gap, "original_max_position_embeddings": original,
    }  # fmt: skip
    # the blend is a difference: an ulp of the wavelength counts several times
    check(parameters, head_dim, 131072, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    theta=THETA, factor=FACTOR, original=st.sampled_from([64, 1000, 4096, 32768]),
    extra=st.sampled_from([
        {}, {"beta_fast": 20, "beta_slow": 2}, {"attention_factor": 0.75}, {"truncate": False},
        {"mscale": 0.7, "mscale_all_dim": 1.2}, {"mscale": 0.7}, {"beta_fast": 1, "beta_slow": 1},
    ]),
    head_dim=st.sampled_from([32, 64, 128]),
)  # fmt: skip
def test_yarn(theta, factor, original, extra, head_dim):
    parameters = {
        "rope_type": "yarn", "rope_theta": theta, "factor": factor,
        "original_max_position_embeddings": original, **extra,
    }  # fmt: skip
    check(parameters, head_dim, 131072)


def test_original_context_at_the_top_level_wins():
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    inside = Rope.from_hf({"rope_scaling": parameters}, 64, 4096)
    top = Rope.from_hf({"rope_scaling": parameters, "original_max_position_embeddings": 1024}, 64, 4096)
    moved = Rope.from_hf({"rope_scaling": {**parameters, "original_max_position_embeddings": 1024}}, 64, 4096)
    assert inside != top == moved


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({**LLAMA3, "high_freq_factor": 4}, "more than low_freq_factor"),
        ({"rope_type": "yarn", "factor": -1}, "rope_parameters.factor is -1"),
        ({"rope_type": "yarn", "factor": 2, "beta_fast": "x"}, "rope_parameters.beta_fast is 'x'"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 0.5}, "embeddings is 0.5"),
    ],
)  # fmt: skip
def test_refusals(parameters, message):
    with pytest.raises(NVFP4Error, match=message):
        Rope.from_hf({"rope_parameters": parameters}, 64, 4096)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float16", 1e-3), ("bfloat16", 8e-3)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 32), (3, 3, 18), (7, 1, 64)])
def test_split_rotary(dtype, tolerance, heads, kv_heads, head_dim):
    """Against float64, at positions out of order and at an offset into their buffer."""
    rng = np.random.default_rng(0)
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    rope = Rope.from_hf({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, head_dim, 4096)
    assert rope.attention_factor > 1.1
    n = 13
    qkv = rng.standard_normal((n, heads + 2 * kv_heads, head_dim)).astype(kind)
    positions = rng.integers(0, 4096, n).astype(np.int32)
    outputs = [
        tvm.runtime.tensor(np.full((n, h, head_dim), np.nan, kind)) for h in (heads, kv_heads, kv_heads)
    ]
    function = split_rotary(rope, heads, kv_heads, head_dim, dtype)
    built = tvm.compile(tvm.IRModule({"main": function}), target="llvm")
    built(tvm.runtime.tensor(qkv), tvm.runtime.tensor(positions), *outputs, tvm.runtime.tensor(rope.table))

    x = qkv.astype(np.float64)
    # the angle itself is float32, as in transformers
    angle = (positions[:, None].astype(np.float32) * rope.table).astype(np.float64)
    cos, sin = (np.tile(f(angle), 2)[:, None] for f in (np.cos, np.sin))
    half = head_dim // 2
    turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    rotated = (x * cos + turned * sin) * rope.attention_factor
    q, k, v = (output.numpy().astype(np.float64) for output in outputs)
    np.testing.assert_allclose(q, rotated[:, :heads], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(k, rotated[:, heads : heads + kv_heads], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(v, x[:, heads + kv_heads :])
