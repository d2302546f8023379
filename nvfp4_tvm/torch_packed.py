"""Packed NVFP4 weights as torch tensors: `pack` runs on the device that holds the weight.

The result is that of `nvfp4_tvm.layout.pack`, bit for bit, from a compiled kernel (`nvfp4_tvm.torch_repack`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from nvfp4_tvm import layout
from nvfp4_tvm.checkpoint.base import NVFP4Tensor
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.torch_repack import repack


def describe(tensor: torch.Tensor) -> str:
    """Return dtype and shape as messages have them."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def check_weight(
    where: str, codes: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor
) -> tuple[int, int]:
    """Check dtypes and shapes of a canonical weight and return (N, K).

    Raises
    ------
    ShapeError
        If one does not fit the others.
    """
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise ShapeError(f"{where}: codes are {describe(codes)}, expected uint8 [N, K/2], two codes a byte")
    N, K = codes.shape[0], 2 * codes.shape[1]
    layout.check_weight(N, K, f"{where}: codes")
    groups = (N, K // layout.GROUP_SIZE)
    if scales.dtype != torch.uint8 or tuple(scales.shape) != groups:
        raise ShapeError(
            f"{where}: scales are {describe(scales)}, expected uint8 {list(groups)} for a weight [{N}, {K}]; "
            "view E4M3 tensors as torch.uint8"
        )
    if global_scale.dtype != torch.float32 or tuple(global_scale.shape) not in ((1,), (N,)):
        raise ShapeError(
            f"{where}: global_scale is {describe(global_scale)}, expected float32 [1] or [{N}], one value or "
            "one a row"
        )
    return N, K


def check_values(where: str, codes: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor) -> None:
    """Refuse NaN or negative block scales and global scales that are not positive and finite.

    Raises
    ------
    CheckpointError
        If there is one; of `NVFP4Tensor`, which says where.
    """
    if codes.is_meta:
        return
    low, high = (float(extreme) for extreme in torch.aminmax(global_scale.detach()))
    # Both propagate NaN; an extreme that is fine vouches for the values between.
    if int(scales.amax()) > 0x7E or not (low > 0 and math.isfinite(high)):
        worst = high if low > 0 else low
        NVFP4Tensor(where, codes.cpu().numpy(), scales.cpu().numpy(), np.float32(worst))


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """An NVFP4 weight [N, K] in the packed layout, for `nvfp4_tvm.torch.linear`.

    Attributes
    ----------
    N, K : int
        The weight's own shape, before padding.
    words : torch.Tensor
        uint32, ``layout.words_shape(N, K)``.
    scales : torch.Tensor
        uint32, ``layout.scales_shape(N, K)``.
    global_scale : torch.Tensor
        float32, ``layout.global_scale_shape(N)``.

    Raises
    ------
    ShapeError
        If a tensor has another dtype or shape, is not contiguous, or lies on another device than the others.
    """

    N: int
    K: int
    words: torch.Tensor = field(repr=False)
    scales: torch.Tensor = field(repr=False)
    global_scale: torch.Tensor = field(repr=False)
    #: Compiled kernels by dtypes and epilogue, see `nvfp4_tvm.torch_kernels`.
    kernels: dict[Any, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        layout.check_weight(self.N, self.K, "packed weight")
        for name, dtype, shape in (
            ("words", torch.uint32, layout.words_shape(self.N, self.K)),
            ("scales", torch.uint32, layout.scales_shape(self.N, self.K)),
            ("global_scale", torch.float32, layout.global_scale_shape(self.N)),
        ):
            tensor = getattr(self, name)
            where = f"packed weight [{self.N}, {self.K}]: {name} is {describe(tensor)}"
            if tensor.dtype != dtype or tuple(tensor.shape) != shape:
                raise ShapeError(
                    f"{where}, expected {str(dtype).removeprefix('torch.')}{list(shape)} of layout version "
                    f"{layout.LAYOUT_VERSION}; pack it again"
                )
            if not tensor.is_contiguous() or tensor.device != self.words.device:
                raise ShapeError(
                    f"{where} with strides {list(tensor.stride())} on {tensor.device}, expected it contiguous on "
                    f"{self.words.device}; call .contiguous() and .to()"
                )

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.words.device

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        return self.words.nbytes + self.scales.nbytes + self.global_scale.nbytes

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return the weight on another device."""
        tensors = (tensor.to(device) for tensor in (self.words, self.scales, self.global_scale))
        return PackedWeight(self.N, self.K, *tensors)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions stay in the process that compiled them.
        return {**self.__dict__, "kernels": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        return PackedWeight(
            self.N, self.K, self.words.clone(), self.scales.clone(), self.global_scale.clone()
        )


def pack(
    codes: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor | float, *, name: str = "weight"
) -> PackedWeight:
    """Pack a canonical NVFP4 weight, on the device that holds it.

    Beside the result it takes memory for no more than what is not contiguous. It synchronizes with the device,
    because it looks at the values. The first call of a process compiles, which takes a second; on CUDA what was
    compiled is kept on disk.

    Parameters
    ----------
    codes : torch.Tensor
        uint8 ``[N, K/2]``, even k in the low nibble.
    scales : torch.Tensor
        ``[N, K/16]``, float8_e4m3fn or its bytes as uint8.
    global_scale : torch.Tensor or float
        float32, one value or one a row.
    name : str
        What errors call the weight.

    Raises
    ------
    ShapeError
        If a dtype, shape or device does not fit.
    CheckpointError
        If a block scale is NaN or negative, or a global scale not positive and finite.
    TargetError
        If the device is not supported, or what compiles kernels for it is not installed.
    """
    if scales.dtype == torch.float8_e4m3fn:
        scales = scales.view(torch.uint8)
    if not isinstance(global_scale, torch.Tensor):
        global_scale = torch.tensor([global_scale], dtype=torch.float32, device=codes.device)
    elif global_scale.ndim == 0:
        global_scale = global_scale[None]
    N, K = check_weight(name, codes, scales, global_scale)
    for what, tensor in (("scales are", scales), ("global_scale is", global_scale)):
        if tensor.device != codes.device:
            raise ShapeError(f"{name}: {what} on {tensor.device}, expected {codes.device}, as the codes")
    check_values(name, codes, scales, global_scale)
    return PackedWeight(N, K, *repack(codes, scales, global_scale))


def interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return the rows of two tensors in the order that the activation "silu_mul" needs.

    Codes, block scales, per-row global scales and biases of a gate and an up projection alike: of each 16 rows
    the first 8 are of the gate (`nvfp4_tvm.schedules.base.MatmulProblem`).

    Parameters
    ----------
    gate, up : torch.Tensor
        ``[N, ...]`` of one shape, N a multiple of 8.

    Returns
    -------
    torch.Tensor
        ``[2 * N, ...]``.

    Raises
    ------
    ShapeError
        If the shapes differ or N is not a multiple of 8.
    """
    half = layout.TILE_N // 2
    if gate.shape != up.shape or gate.ndim < 1 or gate.shape[0] % half:
        raise ShapeError(
            f"interleave: found {describe(gate)} and {describe(up)}, expected one shape with a multiple of {half} "
            "rows"
        )
    return torch.stack((gate.unflatten(0, (-1, half)), up.unflatten(0, (-1, half))), dim=1).flatten(0, 2)
