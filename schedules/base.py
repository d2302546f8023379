"""What a matmul kernel is asked to do, and the rule that answers.

A rule is one kernel family. :meth:`KernelRule.apply` returns a kernel for the problem, or None when the
family does not apply; the first rule of a table that applies wins (:func:`first_match`), as in TVM's dlight.
A kernel is a PrimFunc on CPUs and a :class:`~nvfp4_tvm.schedules.kernel.CudaKernel` on GPUs.

Kernel interface, the same for every family (see :mod:`nvfp4_tvm.layout` for the packed arrays)::

    f(x[M, K], words, scales, global_scale[, bias[N]][, residual[M, out_N]], out[M, out_N])

``M`` is a symbolic int64; on CPUs it is a constant where :attr:`MatmulProblem.static_M` says so. ``out`` is
written whole, and nothing else is but a kernel's own workspace.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tvm.target import Target
from tvm.tirx import Expr, PrimFunc

from nvfp4_tvm import layout
from nvfp4_tvm.arch import ARCHS, Arch, get_arch
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.kernel import CudaKernel

logger = logging.getLogger(__name__)

ACTIVATION_DTYPES = ("float32", "float16", "bfloat16")
#: Those of them that mma.m16n8k16 and wgmma.m64nNk16 take.
TENSOR_CORE_DTYPES = ("bfloat16", "float16")
#: What may follow the matmul in the same kernel, see :class:`MatmulProblem`.
ACTIVATIONS = (None, "silu_mul")

#: What a rule returns.
Kernel: TypeAlias = PrimFunc | CudaKernel


@dataclass(frozen=True)
class MRange:
    """Rows of activations a kernel must handle: ``low <= M <= high``, ``high`` None for no bound."""

    low: int = 1
    high: int | None = None

    def __post_init__(self) -> None:
        if self.low < 1 or (self.high is not None and self.high < self.low):
            raise ShapeError(f"range of M: found [{self.low}, {self.high}], expected 1 <= low <= high")

    @property
    def static(self) -> int | None:
        """The one M of the range, or None if there are several."""
        return self.low if self.low == self.high else None

    def __contains__(self, M: int) -> bool:
        return self.low <= M and (self.high is None or M <= self.high)

    def covers(self, other: MRange) -> bool:
        """Whether all of ``other`` is in this range."""
        return other.low in self and (self.high is None or (other.high is not None and other.high in self))

    def __str__(self) -> str:
        if self.static is not None:
            return str(self.low)
        return f"{self.low}..{'' if self.high is None else self.high}"


@dataclass(frozen=True)
class MatmulProblem:
    """``out = cast(act(sum_k x[m, k] * w[n, k] * global_scale[n] + bias[n]) + residual)``, all of it in fp32.

    ``act`` is the identity, or with ``activation="silu_mul"`` it maps the rows of a gate_up weight to
    ``silu(gate) * up`` and halves them. The weight's rows are then interleaved in eights: of each 16 rows (a
    tile of the layout) the first 8 are gate rows 8t..8t+7 and the last 8 are up rows 8t..8t+7, so that an
    mma fragment holds a gate and its up in one thread.

    Attributes
    ----------
    N, K : int
        Shape of the weight before padding.
    M : MRange
        Rows of activations.
    x_dtype, out_dtype : str
        float32, float16 or bfloat16; ``bias`` has ``x_dtype``.
    bias : bool
        Whether a bias [N] is added, in fp32 before the activation and the cast.
    residual : bool
        Whether a tensor [M, out_N] of ``out_dtype`` is added, in fp32 before the cast.
    activation : {None, "silu_mul"}
        See above.
    dynamic : bool
        Whether M is symbolic even if the range holds a single value, because the kernel is one branch of a
        dispatch on M.
    """

    N: int
    K: int
    M: MRange = MRange()
    x_dtype: str = "bfloat16"
    out_dtype: str = "bfloat16"
    bias: bool = False
    residual: bool = False
    activation: str | None = None
    dynamic: bool = False

    def __str__(self) -> str:
        out = "" if self.out_dtype == self.x_dtype else f" to {self.out_dtype}"
        options = {
            "bias": self.bias,
            self.activation: self.activation is not None,
            "residual": self.residual,
        }
        fused = "".join(f", {name}" for name, has in options.items() if has)
        return f"{self.label}, {self.x_dtype}{out}{fused}, M {self.M}"

    @property
    def static_M(self) -> int | None:
        """The constant M of the kernel's shapes, or None where it is symbolic."""
        return None if self.dynamic else self.M.static

    @property
    def out_N(self) -> int:
        """Columns of ``out``."""
        return self.N if self.activation is None else self.N // 2

    @property
    def label(self) -> str:
        """What it multiplies by, as names of functions begin: letters, digits and underscores."""
        return f"matmul_{self.N}x{self.K}"

    def operands(self, M: Expr | int) -> dict[str, tuple[tuple[Expr | int, ...], str]]:
        """Return shape and dtype of every operand of the kernel interface, in order, ``out`` not included."""
        N, K = self.N, self.K
        found: dict[str, tuple[tuple[Expr | int, ...], str]] = {
            "x": ((M, K), self.x_dtype),
            "words": (layout.words_shape(N, K), "uint32"),
            "scales": (layout.scales_shape(N, K), "uint32"),
            "global_scale": (layout.global_scale_shape(N), "float32"),
        }
        if self.bias:
            found["bias"] = ((N,), self.x_dtype)
        if self.residual:
            found["residual"] = ((M, self.out_N), self.out_dtype)
        return found

    def __post_init__(self) -> None:
        layout.check_weight(self.N, self.K, "matmul")
        if self.activation not in ACTIVATIONS:
            raise ShapeError(
                f"matmul [{self.N}, {self.K}]: activation is {self.activation!r}, expected one of "
                f"{', '.join(map(repr, ACTIVATIONS))}"
            )
        if self.activation is not None and self.N % layout.TILE_N:
            raise ShapeError(
                f"matmul [{self.N}, {self.K}]: {self.activation} needs whole tiles of "
                f"{layout.TILE_N} interleaved rows, found N % {layout.TILE_N} = {self.N % layout.TILE_N}"
            )
        for what in ("x_dtype", "out_dtype"):
            if getattr(self, what) not in ACTIVATION_DTYPES:
                raise ShapeError(
                    f"matmul [{self.N}, {self.K}]: {what} is {getattr(self, what)}, expected one of "
                    f"{', '.join(ACTIVATION_DTYPES)}; cast the activations"
                )


def gemm_arguments(problem: MatmulProblem, x: str = "x", scratch: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of a GEMM launch's arguments, in order.

    Parameters
    ----------
    problem : MatmulProblem
        Says whether there are a bias and a residual.
    x : str
        What holds the activations: the operand, or the workspace of a launch that rearranged them.
    scratch : tuple of str
        Workspaces that the launch shares with others.
    """
    optional = (name for name in ("bias", "residual") if getattr(problem, name))
    return (x, "words", "scales", "global_scale", *optional, *scratch, "out")


class KernelRule(ABC):
    """A kernel family."""

    #: Shown in logs and by ``inspect``.
    name: str

    @abstractmethod
    def apply(self, problem: MatmulProblem, target: Target) -> Kernel | None:
        """Return the family's kernel for ``problem`` on ``target``, or None if it does not apply."""

    def arch_of(self, problem: MatmulProblem, target: Target) -> Arch | None:
        """Return the architecture that a tensor-core family compiles for, or None where none of them applies.

        They are for CUDA, architectures of the table, and activations of 16 bits.
        """
        if target.kind.name != "cuda":
            return self.refuse(problem, f"target is {target.kind.name}, not cuda")
        name = str(target.attrs.get("arch"))
        if name not in {known for arch in ARCHS.values() for known in (arch.name, arch.compile_arch)}:
            return self.refuse(problem, f"architecture {name} is not in the table")
        if problem.x_dtype not in TENSOR_CORE_DTYPES:
            expected = " or ".join(TENSOR_CORE_DTYPES)
            return self.refuse(problem, f"activations are {problem.x_dtype}, expected {expected}")
        return get_arch(name)

    def refuse(self, problem: MatmulProblem, why: str) -> None:
        """Log why the family does not apply; ``return self.refuse(...)`` reads as the None it returns."""
        logger.debug("%s does not apply to %s: %s", self.name, problem, why)


def first_match(
    rules: Sequence[KernelRule], problem: MatmulProblem, target: Target
) -> tuple[KernelRule, Kernel] | None:
    """Return the first rule that applies with its kernel, or None."""
    for rule in rules:
        kernel = rule.apply(problem, target)
        if kernel is not None:
            return rule, kernel
    return None
