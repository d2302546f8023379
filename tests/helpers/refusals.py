"""Asserting that a malformed checkpoint is refused, in one line, and that listing its layers says the same."""

import ml_dtypes
import pytest
import raw_checkpoints as rc

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import NVFP4Error

FORMS = ("modelopt", "compressed-tensors")
CT, MO = "compressed-tensors", "modelopt"
F8 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16
DISAGREE = "config and weights disagree"
DUPLICATE = "different checkpoints|also in"


def refuse(folder, words, *, at_open=None, error=NVFP4Error):
    """Assert that a checkpoint is refused with `words`, and that listing its layers says the same."""
    if at_open is True:
        with pytest.raises(error, match=words) as e:
            open_checkpoint(folder)
    else:
        checkpoint = open_checkpoint(folder)
        with pytest.raises(error, match=words) as e:
            checkpoint.verify()
        refusals = [layer.refusal for layer in checkpoint.layers().values() if layer.refusal]
        assert str(e.value) in refusals
    message = str(e.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 1000


def quant(form, **change):
    cfg = rc.config(form)
    for key, value in change.items():
        cfg["quantization_config"][key] = value
    return cfg
