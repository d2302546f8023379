"""Packing canonical weights that are torch tensors, by the compiled kernel of the device that holds them.

On CUDA the repack kernel of :mod:`nvfp4_tvm.codegen.repack` runs on torch's current stream, on CPUs
:func:`nvfp4_tvm.packing.pack` on torch's memory; neither copies what lies as it should.
"""

from __future__ import annotations

import torch

from nvfp4_tvm import layout, packing
from nvfp4_tvm.codegen.repack import build_repack
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.target import cuda_target
from nvfp4_tvm.torch_device import device_arch, require_cuda_runtime

#: Bytes: what the kernels load at a time.
_ALIGNMENT = 16


def repack(
    codes: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return words, block scales and global scales in the packed layout.

    Parameters
    ----------
    codes, scales : torch.Tensor
        uint8 ``[N, K/2]`` and ``[N, K/16]``, of one device, checked.
    global_scale : torch.Tensor
        float32 ``[1]`` or ``[N]``.

    Raises
    ------
    TargetError
        If the device is neither a CPU nor a GPU that has kernels, or something to compile with is missing.
    """
    N, K = codes.shape[0], 2 * codes.shape[1]
    if codes.device.type not in ("cpu", "cuda", "meta"):
        raise TargetError(f"pack [{N}, {K}]: found a weight on {codes.device}, expected cuda or cpu")
    if codes.device.type == "cpu":
        packed = packing.pack(
            [codes.detach().contiguous().numpy()],
            [scales.detach().contiguous().numpy()],
            [global_scale.detach().contiguous().numpy()],
        )
        words, block_scales, rows = (
            torch.from_numpy(array) for array in (packed.words, packed.scales, packed.global_scale)
        )
        return words, block_scales, rows
    out = (
        torch.empty(layout.words_shape(N, K), dtype=torch.uint32, device=codes.device),
        torch.empty(layout.scales_shape(N, K), dtype=torch.uint32, device=codes.device),
        torch.empty(layout.global_scale_shape(N), dtype=torch.float32, device=codes.device),
    )
    if codes.device.type == "cuda":
        arch = device_arch(codes.device)
        require_cuda_runtime()
        function = build_repack(N, K, cuda_target(arch.name).target).function
        with torch.cuda.device(codes.device):
            function(*(_compact(tensor.detach()) for tensor in (codes, scales, global_scale)), *out)
    return out


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself where it is contiguous and aligned, else a copy."""
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor
