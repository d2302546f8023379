"""What a CUDA kernel family hands to the builder: launches in order, and the scratch memory they share.

A family returns one :class:`CudaKernel`. Its functions are lowered by the pipeline each names, compiled to machine
code, and called one after the other, on the current stream, by the host function of
:mod:`nvfp4_tvm.schedules.dispatch`. M is symbolic (int64) in every launch: a range of M decides which kernel is
chosen, never a shape inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tvm import tirx
from tvm.tirx import PrimFunc

from nvfp4_tvm.errors import ShapeError

#: Names a launch may take as arguments; "bias", "residual" and "indptr" only where the problem has them, "weight"
#: only of an unquantized layer.
OPERANDS = ("x", "weight", "words", "scales", "global_scale", "bias", "residual", "indptr", "out")

#: ``tirx``: TVM's pipeline for TVMScript with explicit threads. ``mma``: ours for scheduled mma.sync GEMMs
#: (:mod:`nvfp4_tvm.schedules.lowering`). ``s_tir``: TVM's default for scheduled TensorIR.
Pipeline = Literal["tirx", "mma", "s_tir"]


@dataclass(frozen=True)
class Workspace:
    """Scratch memory that lives from the first launch of a kernel to its last.

    Attributes
    ----------
    name : str
        What launches call it in their arguments.
    dtype : str
        Of its elements.
    shape : callable
        ``shape(M)``: its extents for M rows of activations, an int64 expression.
    """

    name: str
    dtype: str
    shape: Callable[[tirx.Expr], tuple[tirx.Expr | int, ...]]

    def __post_init__(self) -> None:
        if self.name in OPERANDS:
            raise ShapeError(f"workspace {self.name!r}: the name is an operand's, expected another")


@dataclass(frozen=True)
class Launch:
    """One device kernel.

    Attributes
    ----------
    function : PrimFunc
        Takes one buffer for each name in ``arguments``, in order.
    arguments : tuple of str
        Of :data:`OPERANDS` and the names of the kernel's workspaces.
    pipeline : {"tirx", "mma", "s_tir"}
        How it is lowered.
    arch_specific : bool
        Whether it needs instructions that only ``Arch.compile_arch`` has (sm_90a: wgmma). Its machine code then
        runs on that compute capability alone, and holds no PTX for later ones.
    """

    function: PrimFunc
    arguments: tuple[str, ...]
    pipeline: Pipeline
    arch_specific: bool = False


@dataclass(frozen=True)
class CudaKernel:
    """A family's answer to a problem.

    Attributes
    ----------
    name : str
        Family and configuration, letters, digits and underscores: kernels of one (N, K) with the same name are the
        same kernel and are built once.
    launches : tuple of Launch
        In order.
    workspaces : tuple of Workspace
        Scratch memory of the launches.
    """

    name: str
    launches: tuple[Launch, ...]
    workspaces: tuple[Workspace, ...] = ()

    def __post_init__(self) -> None:
        known = {*OPERANDS, *(workspace.name for workspace in self.workspaces)}
        for launch in self.launches:
            unknown = set(launch.arguments) - known
            if unknown or len(launch.arguments) != len(launch.function.params):
                raise ShapeError(
                    f"kernel {self.name}: a launch names arguments {list(launch.arguments)} for "
                    f"{len(launch.function.params)} parameters, expected one of {sorted(known)} for each"
                )
