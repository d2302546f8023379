"""`nvfp4_tvm.torch.linear` and the two operators behind it, which ``torch.compile`` and ``torch.export`` see.

``nvfp4_tvm::linear`` takes a canonical weight and ``nvfp4_tvm::packed_linear`` a packed one. On CUDA both run the
compiled kernels: a canonical weight is packed at its first call, and the packed form is kept for as long as the
tensor of its codes lives. Elsewhere ``nvfp4_tvm::linear`` is the reference: the weight is decoded exactly and
multiplied in float32, and the global scale and the bias are applied before the one rounding to the dtype of the
activations.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from nvfp4_tvm import layout, numerics, torch_kernels
from nvfp4_tvm.errors import NVFP4Error, ShapeError, TargetError
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES
from nvfp4_tvm.torch_device import device_arch
from nvfp4_tvm.torch_packed import PackedWeight, check_weight, describe, pack

logger = logging.getLogger(__name__)


# ----------------------------------------------------------------------------------------
# Canonical weights


def _check(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> int:
    """Check the operands of ``nvfp4_tvm::linear`` and return N."""
    where = "nvfp4_tvm::linear"
    N, K = check_weight(where, codes, scales, global_scale)
    if str(x.dtype).removeprefix("torch.") not in ACTIVATION_DTYPES:
        raise ShapeError(
            f"{where}: x is {describe(x)}, expected {' or '.join(ACTIVATION_DTYPES)}; cast the activations"
        )
    if x.ndim < 1 or x.shape[-1] != K:
        raise ShapeError(f"{where}: x is {describe(x)}, expected [..., {K}] for a weight [{N}, {K}]")
    if bias is not None and (bias.dtype != x.dtype or tuple(bias.shape) != (N,)):
        raise ShapeError(
            f"{where}: bias is {describe(bias)}, expected {str(x.dtype).removeprefix('torch.')} [{N}], the "
            "dtype of x; cast the model"
        )
    return N


def decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return ``e2m1(code) * e4m3(scale)`` as float32 ``[N, K]``, which is exact.

    Parameters
    ----------
    codes : torch.Tensor
        uint8 ``[N, K/2]``, even k in the low nibble.
    scales : torch.Tensor
        uint8 ``[N, K/16]``, E4M3 bytes.
    """
    return look_up(codes, scales, *value_tables(codes.device))


def value_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what E2M1 codes and E4M3 bytes stand for, float32 ``[16]`` and ``[256]``, copied to a device."""
    return tuple(
        torch.tensor(values.tolist(), device=device)
        for values in (numerics.E2M1_VALUES, numerics.E4M3_VALUES)
    )


def look_up(
    codes: torch.Tensor, scales: torch.Tensor, e2m1: torch.Tensor, e4m3: torch.Tensor
) -> torch.Tensor:
    """Return what :func:`decode` does, from tables that are on the device: a CUDA graph can capture this."""
    nibbles = torch.stack((codes & 15, codes >> 4), dim=-1)
    groups = e2m1[nibbles.int()].view(*scales.shape, layout.GROUP_SIZE)
    return (groups * e4m3[scales.int()].unsqueeze(-1)).flatten(1)


class _Entry(NamedTuple):
    """A packed weight and what it was packed from."""

    versions: tuple[object, ...]
    packed: PackedWeight


_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _versions(*tensors: torch.Tensor) -> tuple[object, ...]:
    """Return what changes when the tensors are written to or replaced."""
    # Tensors made in inference mode have no version counter
    return tuple(
        (tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors
    )


def packed_form(codes: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor) -> PackedWeight:
    """Return the packed form of a canonical weight: packed now if it is new or was written to, else kept.

    It is kept for as long as the tensor ``codes`` lives, and takes as much memory again as the weight.

    Raises
    ------
    NVFP4Error
        If the weight is malformed, or a CUDA graph is being captured and the weight is not packed yet.
    """
    versions = _versions(codes, scales, global_scale)
    entry = _packed.get(codes)
    if entry is not None and entry.versions == versions:
        return entry.packed
    if codes.is_cuda and torch.cuda.is_current_stream_capturing():
        raise NVFP4Error(
            f"linear: found a CUDA graph being captured and a weight {describe(codes)} that is not packed yet; "
            "call the layer once before capturing"
        )
    packed = pack(codes, scales, global_scale)
    _packed[codes] = _Entry(versions, packed)
    return packed


@cache
def _has_kernels(device: torch.device) -> bool:
    """Whether compiled kernels exist for a CUDA device; warns where they do not."""
    try:
        device_arch(device)
    except TargetError as error:
        logger.warning("nvfp4_tvm::linear decodes whole weights on %s, which is slow: %s", device, error)
        return False
    return True


@torch.library.custom_op(
    "nvfp4_tvm::linear",
    mutates_args=(),
    schema="(Tensor x, Tensor codes, Tensor scales, Tensor global_scale, Tensor? bias=None) -> Tensor",
)
def canonical_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply activations by a canonical weight; see `linear`."""
    _check(x, codes, scales, global_scale, bias)
    if x.is_cuda and codes.is_cuda and _has_kernels(x.device):
        return torch_kernels.run(x, packed_form(codes, scales, global_scale), bias)
    out = (x.float() @ decode(codes, scales).t()) * global_scale
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)


@canonical_linear.register_fake
def _(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    N = _check(x, codes, scales, global_scale, bias)
    return x.new_empty((*x.shape[:-1], N))


# ----------------------------------------------------------------------------------------
# Packed weights


@torch.library.custom_op(
    "nvfp4_tvm::packed_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor words, Tensor scales, Tensor global_scale, int N, int K, Tensor? bias=None, "
    "Tensor? residual=None, str? activation=None, ScalarType? out_dtype=None) -> Tensor",
)
def packed_linear(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor,
    N: int,
    K: int,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Multiply activations by a packed weight; see `linear`."""
    weight = PackedWeight(N, K, words, scales, global_scale)
    return torch_kernels.run(x, weight, bias, residual, activation, out_dtype=out_dtype)


@packed_linear.register_fake
def _(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    global_scale: torch.Tensor,
    N: int,
    K: int,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    weight = PackedWeight(N, K, words, scales, global_scale)
    out_dtype = out_dtype or x.dtype
    shape = torch_kernels.check(x, weight, bias, residual, activation, out_dtype)
    return x.new_empty(shape, dtype=out_dtype)


# ----------------------------------------------------------------------------------------
# The function


def linear(
    x: torch.Tensor,
    weight: PackedWeight | torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    global_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    codes: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply activations by an NVFP4 weight; has no gradient.

    ``linear(x, packed)`` runs compiled kernels on the tensors where they are, on torch's current stream, on CUDA
    and on CPUs. They are compiled at the first call for a weight's shape, dtypes and epilogue, which takes
    seconds, and on CUDA kept on disk (`nvfp4_tvm.torch_library`). A call can be captured in a CUDA graph after the
    first. ``linear(x, codes, scales, global_scale)`` takes a canonical weight: on CUDA it packs the weight at its
    first call and keeps both; on CPUs it decodes the weight at every call. Both work under ``torch.compile`` and
    ``torch.export``.

    Parameters
    ----------
    x : torch.Tensor
        ``[..., K]``, float32, float16 or bfloat16. What is not contiguous is copied.
    weight : PackedWeight
        From `pack`. Or, as the second positional operand or by the name ``codes``, a uint8 tensor ``[N, K/2]``,
        even k in the low nibble.
    scales : torch.Tensor, optional
        With codes: uint8 ``[N, K/16]``, E4M3 bytes.
    global_scale : torch.Tensor, optional
        With codes: float32 ``[1]`` or ``[N]``.
    bias : torch.Tensor, optional
        ``[N]`` in the dtype of `x`.
    residual : torch.Tensor, optional
        With a packed weight: ``[..., N]`` (half as many columns with an activation) in the dtype of the result,
        added in float32 before the one rounding.
    activation : {None, "silu_mul"}
        With a packed weight whose rows are interleaved (`interleave`): ``silu(gate) * up``.
    out : torch.Tensor, optional
        With a packed weight: where to write the result; its dtype is the result's.

    Returns
    -------
    torch.Tensor
        ``[..., N]`` in the dtype of `x`: accumulated in float32, rounded once.

    Raises
    ------
    ShapeError
        If a dtype, shape or device does not fit the others.
    TargetError
        If the device is not supported, or what compiles kernels for it is not installed.
    """
    if not isinstance(weight, PackedWeight):
        codes = codes if weight is None else weight
        if codes is None or scales is None or global_scale is None:
            raise ShapeError(
                "linear: found no PackedWeight and not all of codes, scales and global_scale, expected either"
            )
        if residual is not None or activation is not None or out is not None:
            raise NVFP4Error(
                "linear: found residual, activation or out with a canonical weight, expected a packed one; "
                "pack it with nvfp4_tvm.torch.pack"
            )
        if not _dispatched(x) and x.is_cuda and codes.is_cuda and _has_kernels(x.device):
            return torch_kernels.run(x, packed_form(codes, scales, global_scale), bias)
        return canonical_linear(x, codes, scales, global_scale, bias)
    if not _dispatched(x):
        return torch_kernels.run(x, weight, bias, residual, activation, out)
    operands = (
        weight.words,
        weight.scales,
        weight.global_scale,
        weight.N,
        weight.K,
        bias,
        residual,
        activation,
    )
    if out is None:
        return packed_linear(x, *operands)
    return out.copy_(packed_linear(x, *operands, out.dtype))


def _dispatched(x: torch.Tensor) -> bool:
    """Whether a call must go through torch's dispatcher: tracing, gradients (refused there), tensor subclasses.

    Where it need not, some ten microseconds of Python are saved.
    """
    return torch.compiler.is_compiling() or type(x) is not torch.Tensor or x.requires_grad
