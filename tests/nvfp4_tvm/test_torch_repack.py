import numpy as np
import pytest
import torch

from nvfp4_tvm import layout, torch_repack
from nvfp4_tvm.errors import TargetError

FIELDS = ("words", "scales", "global_scale")


def weight(N, K, device="cpu"):
    rng = np.random.default_rng(N + K)
    arrays = (
        rng.integers(0, 256, (N, K // 2), np.uint8),
        rng.integers(0, 0x7F, (N, K // 16), np.uint8),
        rng.uniform(1e-6, 1e3, N).astype(np.float32),
    )
    return [torch.tensor(array, device=device) for array in arrays], layout.pack(*arrays)


def assert_same(found, expected):
    for tensor, field in zip(found, FIELDS, strict=True):
        assert tensor.cpu().numpy().tobytes() == getattr(expected, field).tobytes(), field


def test_on_a_cpu_parameters_and_views_are_taken():
    tensors, expected = weight(20, 48)
    wide = torch.zeros(20, 100, dtype=torch.uint8)
    wide[:, 3:27] = tensors[0]
    scale = torch.nn.Parameter(tensors[2])
    assert_same(torch_repack.repack(wide[:, 3:27], tensors[1], scale), expected)


def test_other_devices():
    tensors, expected = weight(20, 48, "meta")
    found = torch_repack.repack(*tensors)
    assert [tuple(tensor.shape) for tensor in found] == [getattr(expected, field).shape for field in FIELDS]
    assert all(tensor.is_meta for tensor in found)
    tensors = [_Elsewhere(tensor) for tensor in tensors]
    with pytest.raises(TargetError, match=r"pack \[20, 48\]: found a weight on xpu:0, expected cuda or cpu"):
        torch_repack.repack(*tensors)


class _Elsewhere(torch.Tensor):
    """A tensor that says it is on a device that there are no kernels for."""

    @staticmethod
    def __new__(cls, tensor):
        return torch.Tensor._make_subclass(cls, tensor)

    device = torch.device("xpu:0")


def test_what_is_not_aligned_is_copied():
    flat = torch.arange(65, dtype=torch.uint8)
    for tensor, same in ((flat[:64], True), (flat[1:], False), (flat[:64].view(8, 8).T, False)):
        found = torch_repack._compact(tensor)
        assert torch.equal(found, tensor) and found.is_contiguous() and not found.data_ptr() % 16
        assert (found is tensor) == same


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_runs_on_the_current_stream_and_on_views():
    tensors, expected = weight(300, 272, "cuda")
    flat = torch.zeros(300 * 136 + 8, dtype=torch.uint8, device="cuda")
    torch_repack.repack(*tensors)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        flat[8:] = tensors[0].flatten()  # after the sleep: a kernel on another stream would see zeros
        found = torch_repack.repack(flat[8:].view(300, 136), *tensors[1:])
    stream.synchronize()
    assert_same(found, expected)
