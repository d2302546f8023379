"""The compiled kernels behind `nvfp4_tvm.torch.linear`: found or built once, then called on torch tensors.

Tensors cross to TVM by DLPack, without copies, and kernels run on torch's current stream: tvm-ffi asks torch for
both at every call. A call allocates only with torch's allocator, so it can be captured in a CUDA graph once the
kernels are there; the first call on a device builds them and runs each of them once, because CUDA loads machine
code at its first launch and cannot while capturing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
import tvm
from torch.nn.functional import silu

from nvfp4_tvm import layout
from nvfp4_tvm.errors import NVFP4Error, ShapeError, TargetError
from nvfp4_tvm.runtime.threads import configure_threads
from nvfp4_tvm.schedules.base import ACTIVATION_DTYPES, MatmulProblem
from nvfp4_tvm.schedules.dispatch import dispatch
from nvfp4_tvm.target import resolve_target
from nvfp4_tvm.torch_device import device_arch, require_cuda_runtime
from nvfp4_tvm.torch_library import find_library
from nvfp4_tvm.torch_packed import PackedWeight, describe

logger = logging.getLogger(__name__)

#: Activations must begin at a multiple of this many bytes: kernels load vectors of 16.
ALIGNMENT = 16

#: Of tensors that TVM allocates (``kAllocAlignment``), which its llvm code takes for granted.
_TVM_ALIGNMENT = 64

DTYPES = {getattr(torch, name): name for name in ACTIVATION_DTYPES}


class Variant(NamedTuple):
    """What a kernel is compiled for beside the weight's shape and the device."""

    x_dtype: torch.dtype
    out_dtype: torch.dtype
    bias: bool
    residual: bool
    activation: str | None

    def problem(self, N: int, K: int) -> MatmulProblem:
        """Return the problem for every M."""
        return MatmulProblem(
            N,
            K,
            x_dtype=DTYPES[self.x_dtype],
            out_dtype=DTYPES[self.out_dtype],
            bias=self.bias,
            residual=self.residual,
            activation=self.activation,
        )


#: ``kernel(x, weight, bias, residual, out)`` on checked operands: x [M, K] and out [M, out_N], M >= 1.
Kernel = Callable[
    [torch.Tensor, PackedWeight, "torch.Tensor | None", "torch.Tensor | None", torch.Tensor], None
]

#: By variant, N, K and device; a weight keeps its own kernels beside (`PackedWeight.kernels`).
_kernels: dict[tuple[Variant, int, int, torch.device], Kernel] = {}
#: One thread builds at a time: TVM's compiler callback is global to the process.
_lock = threading.Lock()


@cache
def _nothing(device: torch.device) -> torch.Tensor:
    """Return a workspace of no bytes: making one takes as long as making any tensor."""
    return torch.empty(0, dtype=torch.uint8, device=device)


@dataclass(frozen=True)
class CUDAKernel:
    """The kernels of one problem on one device, with one host function in front.

    Attributes
    ----------
    function : callable
        The host function, which chooses the kernel by M.
    workspace_bytes : callable
        Bytes of workspace for M rows.
    """

    function: Callable[..., None]
    workspace_bytes: Callable[[int], int]

    def __call__(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Launch on the current stream of the tensors' device, which must be the current device."""
        operands = [x, weight.words, weight.scales, weight.global_scale]
        if bias is not None:
            operands.append(bias)
        if residual is not None:
            operands.append(residual)
        nbytes = self.workspace_bytes(x.shape[0])
        # torch's allocator knows about streams and captures; a buffer that is kept does not
        workspace = x.new_empty(nbytes, dtype=torch.uint8) if nbytes else _nothing(x.device)
        self.function(*operands, out, workspace)


@dataclass(frozen=True)
class CPUKernel:
    """The llvm kernels of one problem; torch applies a residual and an activation, in float32."""

    function: Callable[..., None]
    activation: str | None
    dtype: torch.dtype

    def __call__(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Run in the calling thread and TVM's pool."""
        # The llvm kernels take what TVM aligns its own tensors to (kAllocAlignment)
        plain = residual is None and self.activation is None and not out.data_ptr() % _TVM_ALIGNMENT
        product = out if plain else x.new_empty((x.shape[0], weight.N), dtype=self.dtype)
        operands = [x, weight.words, weight.scales, weight.global_scale] + ([] if bias is None else [bias])
        aligned = (tensor.clone() if tensor.data_ptr() % _TVM_ALIGNMENT else tensor for tensor in operands)
        self.function(*aligned, product)
        if plain:
            return
        if self.activation == "silu_mul":
            gate, up = product.view(x.shape[0], -1, 2, layout.TILE_N // 2).unbind(2)
            product = (silu(gate) * up).flatten(1)
        out.copy_(product if residual is None else product + residual.float())  # the one rounding


def _build_cpu(problem: MatmulProblem) -> CPUKernel:
    fused = problem.residual or problem.activation is not None
    out_dtype = "float32" if fused else problem.out_dtype
    plain = replace(problem, residual=False, activation=None, out_dtype=out_dtype)
    return CPUKernel(_compile_cpu(plain), problem.activation, getattr(torch, out_dtype))


@cache
def _compile_cpu(problem: MatmulProblem) -> Callable[..., None]:
    configure_threads()
    target = resolve_target("llvm").target
    function = dispatch(problem, target)
    return tvm.compile(function, target=target)[str(function.attrs["global_symbol"])]


def load_cuda_kernel(problem: MatmulProblem, arch: str) -> tuple[CUDAKernel, tuple[int, ...]]:
    """Return the kernels of a problem for a GPU architecture, and one M for each of them.

    Raises
    ------
    TargetError
        If TVM's CUDA runtime does not load, no kernel applies, or something to compile with is missing.
    """
    require_cuda_runtime()
    library = find_library(problem, arch)
    return CUDAKernel(library.function, library.workspace_bytes), library.rows


def warm_up(kernel: Kernel, rows: Iterable[int], variant: Variant, weight: PackedWeight) -> None:
    """Launch every kernel once, on zeros."""
    for M in rows:
        x = weight.global_scale.new_zeros((M, weight.K), dtype=variant.x_dtype)
        out = x.new_empty((M, variant.problem(weight.N, weight.K).out_N), dtype=variant.out_dtype)
        bias = x.new_zeros(weight.N) if variant.bias else None
        residual = torch.zeros_like(out) if variant.residual else None
        kernel(x, weight, bias, residual, out)


def _first_on_device(variant: Variant, weight: PackedWeight) -> CUDAKernel:
    arch, problem = device_arch(weight.device), variant.problem(weight.N, weight.K)
    if torch.cuda.is_current_stream_capturing():
        raise NVFP4Error(
            f"linear [{weight.N}, {weight.K}]: found a CUDA graph being captured at the first call, expected its "
            "kernels to be loaded; call the layer once before capturing"
        )
    kernel, rows = load_cuda_kernel(problem, arch.name)
    with torch.cuda.device(weight.device):
        warm_up(kernel, rows, variant, weight)
    return kernel


def find_kernel(weight: PackedWeight, variant: Variant) -> Kernel:
    """Return the kernel of a weight, built if this process has none for its shape and device yet.

    Raises
    ------
    NVFP4Error
        If the problem cannot be, or a CUDA graph is being captured while there is no kernel.
    TargetError
        If the device is not supported, or something to compile with is missing.
    """
    kernel = weight.kernels.get(variant)
    if kernel is not None:
        return kernel
    device = weight.device
    for name in ("words", "scales", "global_scale"):
        if getattr(weight, name).data_ptr() % ALIGNMENT:
            raise _refuse(
                f"linear [{weight.N}, {weight.K}]",
                f"{name} of the weight lie at {getattr(weight, name).data_ptr():#x}",
                f"a multiple of {ALIGNMENT}; clone the tensor",
            )
    key = (variant, weight.N, weight.K, device)
    kernel = _kernels.get(key) or _find_locked(key, weight)
    weight.kernels[variant] = kernel
    return kernel


def _find_locked(key: tuple[Variant, int, int, torch.device], weight: PackedWeight) -> Kernel:
    variant, N, K, device = key
    with _lock:
        # Another thread may have built it meanwhile
        if key not in _kernels:
            if device.type == "cuda":
                _kernels[key] = _first_on_device(variant, weight)
            elif device.type == "cpu":
                _kernels[key] = _build_cpu(variant.problem(N, K))
            else:
                raise TargetError(f"linear [{N}, {K}]: found a weight on {device}, expected cuda or cpu")
        return _kernels[key]


def _refuse(where: str, found: str, expected: str) -> ShapeError:
    return ShapeError(f"{where}: {found}, expected {expected}")


def check(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str | None,
    out_dtype: torch.dtype,
) -> tuple[int, ...]:
    """Check the operands of a call against each other and return the shape of the output.

    Raises
    ------
    ShapeError
        If a dtype, shape or device does not fit, or there is no such activation.
    """
    where = f"linear [{weight.N}, {weight.K}]"
    if x.dtype not in DTYPES:
        raise _refuse(where, f"x is {describe(x)}", f"{', '.join(DTYPES.values())}; cast the activations")
    if x.ndim < 1 or x.shape[-1] != weight.K:
        raise _refuse(where, f"x is {describe(x)}", f"[..., {weight.K}]")
    if out_dtype not in DTYPES:
        raise _refuse(where, f"the output is {out_dtype}", ", ".join(DTYPES.values()))
    if x.device != weight.device:
        raise _refuse(where, f"x is on {x.device}", f"{weight.device}, as the weight")
    shape = (*x.shape[:-1], weight.N if activation is None else weight.N // 2)
    for name, tensor, dtype, wanted in (
        ("bias", bias, x.dtype, (weight.N,)),
        ("residual", residual, out_dtype, shape),
    ):
        if tensor is None:
            continue
        if tensor.dtype != dtype or tuple(tensor.shape) != wanted or tensor.device != x.device:
            raise _refuse(
                where,
                f"{name} is {describe(tensor)} on {tensor.device}",
                f"{DTYPES[dtype]}{list(wanted)} on {x.device}",
            )
    return shape


def _fits(x: torch.Tensor, weight: PackedWeight) -> bool:
    """Whether `check` would let x pass, for a dtype that there is a kernel for."""
    return x.ndim >= 1 and x.shape[-1] == weight.K and x.device == weight.words.device


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself where it is contiguous and aligned, else a copy."""
    if not tensor.is_contiguous():
        return tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def run(
    x: torch.Tensor,
    weight: PackedWeight,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute `nvfp4_tvm.torch.linear` of a packed weight, outside of torch's dispatcher.

    Raises
    ------
    NVFP4Error
        As `check` and `find_kernel`.
    """
    if out is not None:
        out_dtype = out.dtype
    elif out_dtype is None:
        out_dtype = x.dtype
    # A tuple hashes and compares as the Variant, and takes a microsecond less to make
    kernel = weight.kernels.get((x.dtype, out_dtype, bias is not None, residual is not None, activation))
    if kernel is not None and bias is None and residual is None and _fits(x, weight):
        shape = (*x.shape[:-1], weight.N if activation is None else weight.N // 2)
    else:
        shape = check(x, weight, bias, residual, activation, out_dtype)
        kernel = kernel or find_kernel(
            weight, Variant(x.dtype, out_dtype, bias is not None, residual is not None, activation)
        )
    if out is None:
        out = x.new_empty(shape, dtype=out_dtype)
    elif (
        out.shape != shape or out.device != x.device or not out.is_contiguous() or out.data_ptr() % ALIGNMENT
    ):
        raise _refuse(
            f"linear [{weight.N}, {weight.K}]",
            f"out is {describe(out)} with strides {list(out.stride())} on {out.device} at {out.data_ptr():#x}",
            f"{list(shape)}, contiguous, on {x.device}, at a multiple of {ALIGNMENT}",
        )
    if not out.numel():
        return out
    rows = x if x.ndim == 2 else x.reshape(-1, weight.K)
    flat = out if out.ndim == 2 else out.view(-1, shape[-1])
    bias = None if bias is None else _compact(bias)
    residual = None if residual is None else _compact(residual.reshape(flat.shape))
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        with torch.cuda.device(x.device):
            kernel(_compact(rows), weight, bias, residual, flat)
    else:
        kernel(_compact(rows), weight, bias, residual, flat)
    return out
