import copy

import numpy as np
import pytest
import torch
from torch import nn

from nvfp4_tvm import numerics
from nvfp4_tvm.checkpoint.base import NVFP4Tensor
from nvfp4_tvm.errors import CheckpointError, NVFP4Error, ShapeError
from nvfp4_tvm.torch import Linear, replace_linears


def random_tensor(rng: np.random.Generator, N: int, K: int) -> NVFP4Tensor:
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    scales = rng.integers(0, 0x7F, (N, K // 16), np.uint8)
    return NVFP4Tensor("w", codes, scales, np.float32(rng.uniform(1e-5, 1e-4)))


def random_linear(N: int, K: int, bias: bool = False) -> Linear:
    rng = np.random.default_rng(0)
    return Linear.from_tensor(
        random_tensor(rng, N, K), torch.tensor(rng.standard_normal(N)).float() if bias else None
    )


def test_from_float_is_numerics_quantize():
    torch.manual_seed(1)
    plain = nn.Linear(64, 20).to(torch.bfloat16)
    for method in ("amax", "four_over_six"):
        layer = Linear.from_float(plain, method)
        codes, scales, gs = numerics.quantize(plain.weight.detach().float().numpy(), method=method)
        assert np.array_equal(layer.codes.numpy(), codes) and np.array_equal(layer.scales.numpy(), scales)
        assert layer.global_scale.tolist() == [float(gs)]
        assert layer.bias.dtype == torch.bfloat16 and torch.equal(layer.bias, plain.bias)
        assert layer.bias.data_ptr() != plain.bias.data_ptr() and not layer.bias.requires_grad
        assert torch.equal(
            layer.dequantize(), torch.tensor(numerics.dequantize(codes, scales, gs, np.float32))
        )


def test_casting_the_module_keeps_the_weight():
    layer = random_linear(16, 32, bias=True)
    layer.global_scale.fill_(1e-12)  # float16 would make it zero
    before = [tensor.clone() for tensor in layer.buffers()]
    for cast in (layer.half(), layer.to(torch.bfloat16), layer.double(), layer.float()):
        assert all(map(torch.equal, before, cast.buffers()))
        assert layer.global_scale.dtype == torch.float32
    assert layer.half().bias.dtype == torch.float16
    assert layer.to("meta").global_scale.is_meta


# ----------------------------------------------------------------------------------------
# State dicts


def test_state_dict_round_trip(tmp_path):
    layer = random_linear(20, 48, bias=True)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = Linear(48, 20)
    other.load_state_dict(torch.load(tmp_path / "layer.pt"))
    x = torch.randn(3, 48)
    assert torch.equal(other(x), layer(x))
    meta = Linear(48, 20, device="meta")
    meta.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(meta(x), layer(x))
    missing = dict(layer.state_dict())
    del missing["scales"]
    with pytest.raises(RuntimeError, match=r"Missing key.*scales"):
        other.load_state_dict(missing)


@pytest.mark.parametrize(
    ("key", "change", "error", "message"),
    [
        ("codes", lambda t: t.float(), ShapeError, r"layer: codes are float32\[20, 24\], expected uint8"),
        (
            "codes",
            lambda t: t[:, :16],
            ShapeError,
            r"layer: scales are uint8\[20, 3\], expected uint8 \[20, 2\]",
        ),
        ("codes", lambda t: t[:, :-1], ShapeError, "layer: codes.*multiple of 16"),
        (
            "scales",
            lambda t: t.view(torch.float8_e4m3fn),
            ShapeError,
            "layer: scales are float8.*torch.uint8",
        ),
        (
            "global_scale",
            lambda t: t.half(),
            ShapeError,
            r"layer: global_scale is float16\[1\], expected float32",
        ),
        ("global_scale", lambda t: t[0], ShapeError, r"layer: global_scale is float32\[\]"),
        (
            "global_scale",
            lambda t: t.expand(20),
            ShapeError,
            "layer: found .* 20 global scales, expected .* with 1",
        ),
        ("scales", lambda t: t + 0x80, CheckpointError, "layer: found a block scale that is negative"),
        (
            "scales",
            lambda t: torch.full_like(t, 0x7F),
            CheckpointError,
            "layer: found a block scale that is NaN",
        ),
        ("global_scale", lambda t: -t, CheckpointError, "layer: found the global scale -"),
        ("global_scale", lambda t: t * torch.nan, CheckpointError, "layer: found the global scale nan"),
        ("global_scale", lambda t: t * torch.inf, CheckpointError, "layer: found the global scale inf"),
    ],
)
def test_state_dict_that_pytorch_would_cast_is_refused(key, change, error, message):
    model = nn.ModuleDict({"layer": random_linear(20, 48)})
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[f"layer.{key}"] = change(state[f"layer.{key}"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message) as caught:
        model.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)


def test_wrong_constructions_are_refused():
    with pytest.raises(ShapeError, match="multiple of 16"):
        Linear(40, 8)
    tensor = random_tensor(np.random.default_rng(0), 8, 32)
    for bias in (torch.zeros(7), torch.zeros(8, dtype=torch.int32)):
        with pytest.raises(ShapeError, match=r"w: bias is .*expected floating point \[8\]"):
            Linear.from_tensor(tensor, bias)


# ----------------------------------------------------------------------------------------
# Replacing


def test_replace_linears_selects_and_keeps_sharing():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.Linear(16, 16))
    model.append(model[0])
    kept = model[2]
    assert replace_linears(model, ["0", "3"]) == ["0", "3", "4"]
    assert isinstance(model[0], Linear) and model[2] is kept and model[4] is model[0]
    assert replace_linears(model) == ["2"] and replace_linears(model) == []

    model = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 16), nn.Dropout())).eval()
    model.append(model[0])
    assert replace_linears(model, lambda name, layer: layer.out_features == 32) == ["0", "2"]
    assert model[0] is model[2] and not model[0].training and type(model[1][0]) is nn.Linear


def test_replace_linears_refuses_and_leaves_the_model():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 20), nn.Linear(20, 8))
    with pytest.raises(NVFP4Error, match=r"'9' is not a torch\.nn\.Linear of the model, expected .* '0'"):
        replace_linears(model, ["0", "9"])
    with pytest.raises(ShapeError, match=r"^2: found shape \(8, 20\).*exclude this layer"):
        replace_linears(model)
    assert all(type(layer) is nn.Linear for layer in model)
    with pytest.raises(NVFP4Error, match=r"use Linear\.from_float"):
        replace_linears(nn.Linear(32, 32))
