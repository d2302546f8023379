"""What the project's kernels are measured beside, as far as it is installed: the contenders of `benchmarks.gemm`.

The interface is that of `benchmarks.peer`. Marlin is the op library of an installed vLLM, Humming the package
``humming-kernels``; cuBLAS multiplies weights that were dequantized once, and `Dequantize` does so at every
call, as a framework without a kernel for the format would.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any, Protocol

import torch

from benchmarks.peer import NVFP4TVM, NVFP4TVMSm89
from nvfp4_tvm.torch import decode
from nvfp4_tvm.torch_ops import look_up, value_tables


class Contender(Protocol):
    """Multiplies by NVFP4 weights, or by what it makes of them."""

    name: str

    def prepare(self, packed: torch.Tensor, scale: torch.Tensor, global_scale: float) -> Any:
        """Take uint8 [N, K/2] (even k in the low nibble), float8_e4m3fn [N, K/16] and a float."""

    def run(self, a: torch.Tensor, weight: Any, out: torch.Tensor) -> None:
        """Multiply bfloat16 [M, K] into [M, N]."""


def dequantize(packed: torch.Tensor, scale: torch.Tensor, global_scale: float) -> torch.Tensor:
    """Return the exact weight, float32 [N, K]."""
    return decode(packed, scale.view(torch.uint8)).float() * global_scale


class CuBLAS:
    """``torch.mm`` with weights that are bfloat16: four times the memory."""

    name = "cublas_bf16"

    def prepare(self, packed: torch.Tensor, scale: torch.Tensor, global_scale: float) -> torch.Tensor:
        """Dequantize once."""
        return dequantize(packed, scale, global_scale).to(torch.bfloat16)

    def run(self, a: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """Multiply."""
        torch.mm(a, weight.T, out=out)


class Dequantize:
    """Dequantize with torch and ``torch.mm``, at every call: what works without a kernel."""

    name = "dequantize_mm"

    def prepare(self, packed: torch.Tensor, scale: torch.Tensor, global_scale: float) -> Any:
        """Keep the weight as it is, and what its codes mean."""
        return packed, scale.view(torch.uint8), *value_tables(packed.device), global_scale

    def run(self, a: torch.Tensor, weight: Any, out: torch.Tensor) -> None:
        """Dequantize and multiply."""
        *codes, global_scale = weight
        torch.mm(a, (look_up(*codes) * global_scale).to(torch.bfloat16).T, out=out)


class Marlin:
    """vLLM's ``marlin_gemm`` for NVFP4 weights."""

    name = "marlin"
    #: vLLM's id of its scalar type float4_e2m1f: exponent, mantissa, signed, bias, finite only, nan
    #: representation.
    TYPE_FIELDS = ((2, 8), (1, 8), (1, 1), (0, 32), (1, 1), (0, 8))

    def __init__(self, library: str) -> None:
        torch.ops.load_library(library)
        self.type_id = offset = 0
        for member, width in self.TYPE_FIELDS:
            self.type_id |= member << offset
            offset += width
        sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.workspace = torch.zeros(sms, dtype=torch.int, device="cuda")

    def prepare(self, packed: torch.Tensor, scale: torch.Tensor, global_scale: float) -> Any:
        """Repack codes and scales as vLLM does when it loads a checkpoint."""
        n, k = packed.shape[0], packed.shape[1] * 2
        nothing = torch.empty(0, dtype=torch.int, device="cuda")
        codes = torch.ops._C.gptq_marlin_repack(
            packed.view(torch.int32).T.contiguous(), nothing, k, n, 4, False
        )
        order = [i + 8 * j for i in range(8) for j in range(8)]
        scales = scale.float().T.contiguous().reshape(-1, 64)[:, order].reshape(-1, n)
        scales = scales.reshape(-1, 4)[:, [0, 2, 1, 3]].reshape(-1, n)
        headroom = 2.0 ** math.floor(math.log2(448 / scales.max().item()))
        scales = (scales * headroom * 128).to(torch.half)
        scales[scales < 2] = 0
        scales = (scales.view(torch.int16) << 1).view(torch.float8_e4m3fn)[:, 1::2].contiguous()
        rows = torch.tensor([global_scale * 2.0**119 / headroom], dtype=torch.float32, device="cuda")
        return codes, scales, rows, n, k

    def run(self, a: torch.Tensor, weight: Any, out: torch.Tensor) -> None:
        """Multiply."""
        codes, scales, rows, n, k = weight
        flags = (True, False, True, False)
        shape = (a.shape[0], n, k)
        torch.ops._C.marlin_gemm(
            a, out, codes, None, scales, None, rows, None, None, None, self.workspace, self.type_id, *shape, *flags
        )  # fmt: skip


class Humming:
    """The layer of ``humming-kernels``."""

    name = "humming"

    def prepare(self, packed: torch.Tensor, scale: torch.Tensor, global_scale: float) -> Any:
        """Load a layer."""
        from humming.layer import HummingLayer

        config = {"quant_method": "modelopt", "quant_algo": "nvfp4", "group_size": 16}
        layer = HummingLayer(
            shape_n=packed.shape[0],
            shape_k=packed.shape[1] * 2,
            torch_dtype=torch.bfloat16,
            weight_config=config,
        ).cuda()
        rows = torch.tensor([global_scale], dtype=torch.float32, device="cuda")
        layer.load_from_tensors({"weight": packed, "weight_scale": scale, "weight_scale_2": rows})
        layer.transform()
        return layer

    def run(self, a: torch.Tensor, weight: Any, out: torch.Tensor) -> None:
        """Multiply."""
        weight(a, outputs=out)


def installed(marlin_library: str | None = None) -> list[Contender]:
    """Return all contenders that can be measured here, ours first.

    Parameters
    ----------
    marlin_library : str, optional
        Path of vLLM's ``_C.abi3.so``; by default that of an installed vLLM.
    """
    contenders: list[Contender] = [NVFP4TVM(), NVFP4TVMSm89(), CuBLAS(), Dequantize()]
    spec = None if marlin_library else importlib.util.find_spec("vllm")
    if spec is not None and spec.submodule_search_locations:
        marlin_library = f"{next(iter(spec.submodule_search_locations))}/_C.abi3.so"
    if marlin_library:
        contenders.append(Marlin(marlin_library))
    if importlib.util.find_spec("humming"):
        contenders.append(Humming())
    return contenders
