import ml_dtypes
import numpy as np
import pytest
import raw_checkpoints as rc

from nvfp4_tvm import numerics
from nvfp4_tvm.checkpoint import NVFP4Tensor, open_checkpoint
from nvfp4_tvm.checkpoint.base import FORMATS, Format, quantization_config
from nvfp4_tvm.errors import CheckpointError, ShapeError


def tensor(**change):
    w = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    codes, scales, gs = numerics.quantize(w)
    return NVFP4Tensor(**{"name": "m", "codes": codes, "scales": scales, "global_scale": gs, **change}), w


def test_canonical_tensor():
    t, w = tensor()
    assert t.shape == (6, 32)
    assert t.nbytes == 6 * 16 + 6 * 2 + 4
    np.testing.assert_array_equal(t.dequantize(), numerics.dequantize(t.codes, t.scales, t.global_scale))
    assert t.dequantize(ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    assert np.abs(t.dequantize() - w).max() < np.abs(w).max() / 5
    with pytest.raises(AttributeError):
        t.name = "other"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"codes": np.zeros((6, 16), np.int8)}, ShapeError, "int8"),
        ({"codes": np.zeros((6, 15), np.uint8)}, ShapeError, "multiple of 16"),
        ({"codes": np.zeros((5, 16), np.uint8)}, ShapeError, "N, K/16"),
        ({"scales": np.zeros((6, 2), np.float32)}, ShapeError, "float32"),
        ({"scales": np.zeros(12, np.uint8)}, ShapeError, "uint8"),
        ({"scales": np.full((6, 2), 0x7F, np.uint8)}, CheckpointError, "NaN"),
        ({"scales": np.full((6, 2), 0x80, np.uint8)}, CheckpointError, "negative"),
        ({"global_scale": np.float32(0)}, CheckpointError, "positive"),
        ({"global_scale": np.float32(np.inf)}, CheckpointError, "positive"),
        ({"global_scale": np.float32(np.nan)}, CheckpointError, "positive"),
    ],
)
def test_canonical_tensor_refuses(change, error, words):
    with pytest.raises(error, match=words):
        tensor(**change)


def test_registry_holds_the_formats(tmp_path):
    open_checkpoint(rc.write(tmp_path, "modelopt"))
    assert {f.name for f in FORMATS} == {"modelopt", "compressed-tensors", "none"}
    assert all(issubclass(f, Format) for f in FORMATS)


def test_open_checkpoint_takes_a_string(tmp_path):
    assert open_checkpoint(str(rc.write(tmp_path, "modelopt"))).path == tmp_path


def test_quantization_config_old_spelling(tmp_path):
    assert quantization_config({"compression_config": {"a": 1}}, tmp_path) == {"a": 1}
    assert quantization_config({"quantization_config": None}, tmp_path) is None
    cfg = rc.config("compressed-tensors")
    cfg["compression_config"] = cfg.pop("quantization_config")
    assert open_checkpoint(rc.write(tmp_path, "compressed-tensors", cfg=cfg)).format == "compressed-tensors"
