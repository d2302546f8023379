"""Random damage to checkpoints: an error of ours, or the right numbers."""

import numpy as np
import pytest
import raw_checkpoints as rc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_checkpoints import UP, K, N
from refusals import FORMS, MO, refuse

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.errors import NVFP4Error

# ---- random damage


@pytest.fixture(scope="module", params=FORMS)
def genuine(request, tmp_path_factory):
    folder = rc.write(tmp_path_factory.mktemp("damage"), request.param)
    checkpoint = open_checkpoint(folder)
    good = {n: (checkpoint.tensor_info(n), checkpoint.tensor(n).tobytes()) for n in checkpoint.names()}
    return request.param, (folder / "model.safetensors").read_bytes(), good


def survives(folder, good, flipped_tensors):
    """Open and read everything: an error of ours, or data identical outside what was flipped."""
    try:
        checkpoint = open_checkpoint(folder)
    except NVFP4Error as e:
        assert "\n" not in str(e)
        return
    for info in checkpoint.layers().values():
        assert info.refusal is None or "\n" not in info.refusal
    for name in checkpoint.names():
        info = checkpoint.tensor_info(name)
        data = checkpoint.tensor(name).tobytes()
        if name in good and name not in flipped_tensors:
            same = (info.dtype, info.shape) == (good[name][0].dtype, good[name][0].shape)
            assert not same or data == good[name][1]
    try:
        checkpoint.verify()
    except NVFP4Error:
        return
    # accepted: then the quantized layer is there, of the right shape, with sane scales
    tensor = checkpoint.nvfp4(UP)
    assert tensor.shape == (N, K)
    assert np.isfinite(tensor.dequantize(np.float64)).all()


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_header_bits(genuine, tmp_path, position, bit, data):
    form, body, good = genuine
    length = int.from_bytes(body[:8], "little")
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[int(position * (8 + length))] ^= 1 << bit
        position = data.draw(st.floats(0, 1, exclude_max=True))
        bit = data.draw(st.integers(0, 7))
    survives(rc.write(tmp_path, form, body=bytes(damaged)), good, set())


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_body_bytes(genuine, tmp_path, position, value):
    form, body, good = genuine
    begin = 8 + int.from_bytes(body[:8], "little")
    at = begin + int(position * (len(body) - begin))
    damaged = bytearray(body)
    damaged[at] ^= value
    flipped = {n for n, (info, _) in good.items() if info.begin <= at < info.end}
    assert len(flipped) == 1
    survives(rc.write(tmp_path, form, body=bytes(damaged)), good, flipped)


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncated_anywhere(genuine, tmp_path, cut):
    form, body, _ = genuine
    refuse(rc.write(tmp_path, form, body=body[: int(cut * len(body))]), "model.safetensors", at_open=True)


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(tmp_path, body):
    refuse(rc.write(tmp_path, MO, body=body), "model.safetensors", at_open=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.sampled_from(["NVFP4", "Linear",
    "re:.*", "", "x"]), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                "quant_method",
                "quant_algo",
                "ignore",
                "exclude_modules",
                "config_groups",
                "group_0",
                "targets",
                "weights",
                "num_bits",
                "type",
                "group_size",
                "format",
                "quantization",
                "quantized_layers",
                "sparsity_config",
                "quantization_status",
            ],
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(FORMS), JSON, st.data())
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_configs(tmp_path, form, value, data):
    """Any JSON at any place of a valid config: an error of ours, or the right numbers."""
    cfg = rc.config(form)
    place = cfg
    for _ in range(data.draw(st.integers(0, 4))):
        inner = [k for k, v in place.items() if isinstance(v, dict)]
        if not inner:
            break
        place = place[data.draw(st.sampled_from(inner))]
    place[data.draw(st.sampled_from(sorted(place)))] = value
    folder = rc.write(tmp_path, form, cfg=cfg)
    try:
        checkpoint = open_checkpoint(folder)
        checkpoint.verify()
    except NVFP4Error as e:
        assert "\n" not in str(e) and str(folder) in str(e)
        return
    want = open_checkpoint(rc.write(tmp_path / "good", form)).nvfp4(UP)
    got = checkpoint.nvfp4(UP)
    np.testing.assert_array_equal(got.dequantize(), want.dequantize())
