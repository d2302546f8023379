import os
import subprocess
import sys

import benchmark_modules
import pytest
import torch

from benchmarks import peer
from nvfp4_tvm.schedules.base import MatmulProblem


def operands(N, K, M, device):
    packed = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device=device)
    scale = (torch.rand(N, K // 16, device=device) * 200 + 16).to(torch.float8_e4m3fn)
    return packed, scale, torch.randn(M, K, device=device).bfloat16()


def dequantized(packed, scale, global_scale):
    values = torch.tensor(
        [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], device=packed.device
    )
    codes = torch.stack([values[(packed & 15).long()], values[(packed >> 4).long()]], -1).flatten(1)
    return (codes * scale.float().repeat_interleave(16, 1) * global_scale).double()


def agree(contender, N, K, M, device):
    packed, scale, a = operands(N, K, M, device)
    weight = contender.prepare(packed, scale, 1 / 2688)
    out = torch.full((M, N), torch.nan, dtype=torch.bfloat16, device=device)
    contender.run(a, weight, out)
    exact = a.double() @ dequantized(packed, scale, 1 / 2688).T
    assert (out.double() - exact).norm() / exact.norm() < 3e-3


@pytest.mark.parametrize(("N", "K", "M"), [(8, 48, 3), (100, 400, 17)])
def test_on_the_cpu(N, K, M):
    agree(peer.NVFP4TVM(), N, K, M, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("contender", [peer.NVFP4TVM, peer.NVFP4TVMSm89])
def test_on_a_gpu(contender):
    made = contender()
    for M in (1, 5, 17, 100, 300):
        agree(made, 100, 400, M, "cuda")


def test_names_differ():
    assert peer.NVFP4TVM().name == "nvfp4_tvm" and peer.NVFP4TVMSm89().name == "nvfp4_tvm_sm89"


def test_translation_runs_every_kernel_once(monkeypatch):
    calls, zeros = [], torch.zeros

    def kernel(x, weight, bias, residual, out):
        calls.append(
            (tuple(x.shape), x.dtype, weight.N, bias is not None, residual is not None, tuple(out.shape))
        )

    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **more: zeros(*shape, **more))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(peer, "load_cuda_kernel", lambda problem, arch: (kernel, (1, 17)))
    peer.translate(MatmulProblem(32, 48, x_dtype="float16", bias=True, activation="silu_mul"), "sm_89")
    assert calls == [((M, 48), torch.float16, 32, True, False, (M, 16)) for M in (1, 17)]


def test_only_foreign_code_is_translated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not peer.translated("sm_89")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert peer.translated("sm_89") and not peer.translated("sm_90")


@pytest.mark.slow
def test_build_fills_the_cache(tmp_path):
    # float32 has one kernel for every M
    options = ["--shapes", "8x256", "--dtypes", "float32", "--archs", "sm_89"]
    command = [sys.executable, "-m", "benchmarks.peer", "build", *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=benchmark_modules.ROOT,
        env={**os.environ, "NVFP4_TVM_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "8x256 float32 sm_89: " in done.stdout
    assert len(list(tmp_path.glob("*.so"))) == 1
