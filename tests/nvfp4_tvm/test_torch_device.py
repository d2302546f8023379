import pytest
import torch

from nvfp4_tvm import torch_device
from nvfp4_tvm.arch import get_arch
from nvfp4_tvm.errors import TargetError


def test_unsupported_devices_are_named(monkeypatch):
    for capability, message in [((7, 5), "no bf16 mma.sync"), ((10, 0), "FP4 units of its own")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        with pytest.raises(TargetError, match=message):
            torch_device.device_arch(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert torch_device.device_arch(torch.device("cuda")) is get_arch("sm_89")


def test_a_runtime_that_does_not_load_is_said(monkeypatch):
    monkeypatch.setattr(torch_device, "load_cuda_runtime", lambda: False)
    with pytest.raises(TargetError, match=r"pip install 'nvidia-cuda-runtime"):
        torch_device.require_cuda_runtime()
    monkeypatch.setattr(torch_device, "load_cuda_runtime", lambda: True)
    torch_device.require_cuda_runtime()
