"""What the CPU kernels share: their arguments, vectors, the transposed activations and the epilogue.

Both kernels keep the 16 words of a row's 128-block in vector lanes, so lane w meets ``k = 8w + j`` of the
block for code j; activations are put into that order once a call. A row's dot product is then a vector of
partial sums until the end of K.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem

#: Words of one row in a 128-block.
ROW_WORDS = layout.TILE_K // layout.CODES_PER_WORD


def named(name: str, value: Any) -> Any:
    """Give an IR object the name it is printed with, and return it."""
    IRBuilder.name(name, value)
    return value


def load(buffer: Buffer, *index: Expr | int, lanes: int) -> Expr:
    """Load ``lanes`` elements that start at ``index``."""
    return buffer[(*index[:-1], T.ramp(index[-1], 1, lanes) if lanes > 1 else index[-1])]


def store(buffer: Buffer, value: Expr, *index: Expr | int) -> None:
    """Store a vector at ``index`` and after."""
    lanes = value.ty.dtype.lanes
    T.buffer_store(buffer, value, [*index[:-1], T.ramp(index[-1], 1, lanes)])


def zeros(lanes: int) -> Expr:
    """Return a vector of float32 zeros."""
    return T.Broadcast(T.float32(0), lanes)


def horizontal_sum(vector: Expr) -> Expr:
    """Add the lanes of a vector, halves first."""
    lanes = vector.ty.dtype.lanes
    while lanes > 1:
        lanes //= 2
        low, high = (T.Shuffle([vector], list(range(at, at + lanes))) for at in (0, lanes))
        vector = T.Bind(low + high)
    return vector


@dataclass(frozen=True)
class Arguments:
    """The buffers of the kernel interface, and ``words`` and ``scales`` seen flat."""

    problem: MatmulProblem
    M: Expr | int
    x: Buffer
    bias: Buffer | None
    global_scale: Buffer
    out: Buffer
    flat_words: Buffer
    flat_scales: Buffer

    @property
    def blocks(self) -> int:
        """128-blocks along K."""
        return layout.tiles(1, self.problem.K)[1]

    def steps(self, lanes: int) -> int:
        """Steps along K of ``lanes`` words, 8 * lanes codes, each."""
        return self.blocks * (ROW_WORDS // lanes)

    def load_words(self, t: Expr, h: int, g: Expr | int, step: Expr, lanes: int) -> Expr:
        """Load the words of row (t, h, g) in K step ``step``, of ``lanes`` words."""
        per_block = ROW_WORDS // lanes
        row = ((t * self.blocks + step // per_block) * 2 + h) * 8 + g
        return load(self.flat_words, row * ROW_WORDS + step % per_block * lanes, lanes=lanes)

    def load_scales(self, t: Expr, g: Expr | int, step: Expr, lanes: int) -> Expr:
        """Load the scale bytes of rows (t, 0, g) and (t, 1, g) in a K step; `scale_lanes` orders them."""
        per_block = ROW_WORDS // lanes
        lane = g * 4 + step % per_block * (lanes // 4)
        word = (t * self.blocks + step // per_block) * layout.LANES + lane
        return T.reinterpret(f"uint8x{lanes}", load(self.flat_scales, word, lanes=lanes // 4))

    def write(self, m: Expr | int, n: Expr, total: Expr) -> None:
        """Write ``out[m, n]`` from the unscaled sum; rows of the padding are dropped."""
        problem = self.problem
        if problem.N % layout.TILE_N:
            with T.If(n < problem.N), T.Then():
                self._write(m, n, total)
        else:
            self._write(m, n, total)

    def _write(self, m: Expr | int, n: Expr, total: Expr) -> None:
        value = total * self.global_scale[n]
        if self.bias is not None:
            value = value + T.cast(self.bias[n], "float32")
        T.buffer_store(self.out, T.cast(value, self.problem.out_dtype), [m, n])


#: Emits a kernel over its arguments.
Body: TypeAlias = Callable[[Arguments], None]


def transpose_activations(
    args: Arguments,
    xt: Buffer,
    prefix: tuple[Expr, ...],
    step: Expr,
    first: Expr | int,
    rows: int,
    lanes: int,
) -> None:
    """Fill ``xt[*prefix, step, j, m, lane]``, ``m < rows``, with zeros outside of x.

    Its value is ``x[first + m, 8 * (step * lanes + lane) + j]`` in float32.
    """
    K = args.problem.K
    with T.grid(layout.CODES_PER_WORD, rows, lanes) as (j, m, lane):
        k = (step * lanes + lane) * layout.CODES_PER_WORD + j
        value = T.cast(args.x[first + m, k], "float32")
        if rows != args.problem.M.static:
            value = T.if_then_else(first + m < args.M, value, T.float32(0))
        if K % layout.TILE_K:
            value = T.if_then_else(k < K, value, T.float32(0))
        T.buffer_store(xt, value, [*prefix, step, j, m, lane])


def scale_lanes(h: int, lanes: int) -> list[int]:
    """Return which byte of `Arguments.load_scales` belongs to each word of half h, the same in every step."""
    result = []
    for word in range(lanes):
        group = word * layout.CODES_PER_WORD // layout.GROUP_SIZE
        _, _, lane, byte = layout.scale_index(8 * h, group)
        result.append(4 * lane + byte)
    return result


class CPURule(KernelRule):
    """A kernel family of CPUs: its kernel is a body over `Arguments`, which kernels on experts share."""

    #: Name of the function.
    symbol: str

    @abstractmethod
    def body(self, problem: MatmulProblem, target: Target) -> Body | None:
        """Return what emits the family's kernel for ``problem`` on ``target``, or None if it does not apply."""

    def apply(self, problem: MatmulProblem, target: Target) -> PrimFunc | None:
        """See `KernelRule.apply`."""
        body = self.body(problem, target)
        if body is None:
            return None
        return kernel(problem, self.symbol, lambda buffers, M: body(arguments(problem, M, buffers)))


def kernel(
    problem: MatmulProblem, name: str, emit: Callable[[dict[str, Buffer], Expr | int], None]
) -> PrimFunc:
    """Build the PrimFunc of the kernel interface around what ``emit(buffers by name, M)`` emits."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        # Scheduled: dlight and the default schedules leave the function alone.
        T.func_attr({"tirx.is_scheduled": 1, "tirx.noalias": True})
        M = problem.static_M
        if M is None:
            M = named("M", T.int64())
        shapes = {**problem.operands(M), "out": ((M, problem.out_N), problem.out_dtype)}
        emit({name: argument(name, *about) for name, about in shapes.items()}, M)
    return builder.get()


def arguments(problem: MatmulProblem, M: Expr | int, buffers: dict[str, Buffer]) -> Arguments:
    """Return the arguments of a kernel of one weight."""
    flat_words, flat_scales = (_flat(f"flat_{name}", buffers[name]) for name in ("words", "scales"))
    x, bias, global_scale, out = (buffers.get(name) for name in ("x", "bias", "global_scale", "out"))
    return Arguments(problem, M, x, bias, global_scale, out, flat_words, flat_scales)


def argument(name: str, shape: tuple, dtype: str) -> Buffer:
    """Declare a buffer argument of the kernel being built."""
    return named(name, T.match_buffer(T.arg(f"{name}_handle", T.handle()), shape, dtype))


def view(name: str, buffer: Buffer, shape: tuple, first: Expr | int) -> Buffer:
    """Declare a compact part of a buffer that begins at element ``first``."""
    offset = T.cast(first, "int64")
    return named(name, T.decl_buffer(shape, buffer.dtype, data=buffer.data, elem_offset=offset))


def _flat(name: str, buffer: Buffer) -> Buffer:
    size = 1
    for extent in buffer.shape:
        size = size * extent
    return named(name, T.decl_buffer((size,), buffer.dtype, data=buffer.data, elem_offset=buffer.elem_offset))
