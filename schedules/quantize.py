"""Quantizing to NVFP4 on the CPU: what :func:`nvfp4_tvm.numerics.quantize` computes, compiled.

Float operations are those of :mod:`nvfp4_tvm.scaling`, in their order, so that results are the same bit for bit:
divisions are divided, not multiplied by reciprocals, and products are rounded before something is added, which
LLVM would fuse. A task takes `BATCH` groups: their magnitudes, then all their scales in vectors, then their codes,
while the weights are in L1; after the first, the method "four_over_six" compares what each block loses.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import Buffer, Expr, PrimFunc
from tvm.tirx.script.builder import ir as T

from nvfp4_tvm.codes import E2M1_MAX, E4M3_MAX, E4M3_MIN, GROUP_SIZE
from nvfp4_tvm.scaling import (
    CANDIDATE_RANGE,
    COMPRESSED_TENSORS_ZERO,
    FOUR_OVER_SIX_E4M3_MAX,
    LEAST_RANGE,
    WIDER,
    Arithmetic,
    Method,
)
from nvfp4_tvm.schedules.addressed import advance, helpers, load, rounded
from nvfp4_tvm.schedules.cpu_common import argument, horizontal_sum, named, store
from nvfp4_tvm.schedules.cpu_common import load as load_vector
from nvfp4_tvm.schedules.intrin.cpu_decode import PortableDecoder

KERNEL = "nvfp4_cpu_quantize"
#: Groups of a task; their bfloat16 weights take 2 KiB.
BATCH = 64
#: Lanes of the vectors of scales: a register of AVX2.
_LANES = 8
#: Of the weights, and unsigned integers of their size.
_UNSIGNED = {"bfloat16": "uint16", "float16": "uint16", "float32": "uint32"}
DTYPES = tuple(_UNSIGNED)


def cpu_quantize(dtype: str, arithmetic: Arithmetic, method: Method = "amax") -> PrimFunc:
    """Return ``f(weight, groups, global_scale, global_amax, codes, scales)`` for llvm targets.

    Parameters
    ----------
    dtype : str
        bfloat16, float16 or float32: of the weights at the address ``weight``, which hold no NaN and no infinity.
    arithmetic : {"modelopt", "compressed-tensors"}
        Whose ``global_scale``, as it is stored, and whose order of operations.
    method : {"amax", "four_over_six"}
        See `nvfp4_tvm.numerics.quantize`.

    Returns
    -------
    PrimFunc
        It fills ``codes`` uint8[8 * groups] and ``scales`` uint8[groups]; ``global_amax`` is the largest magnitude
        that ``global_scale`` was made from.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_name(KERNEL)
        T.func_attr({"global_symbol": KERNEL, "tirx.is_scheduled": 1, "tirx.noalias": True})
        sizes = T.int64(), T.int64()
        weight = named("weight", T.arg("weight", T.uint64()))
        groups = named("groups", T.arg("groups", T.int64()))
        stored = named("global_scale", T.arg("global_scale", T.float32()))
        global_amax = named("global_amax", T.arg("global_amax", T.float32()))
        rules = _Rules(arithmetic, method, stored, global_amax)
        codes, scales = argument("codes", sizes[:1], "uint8"), argument("scales", sizes[1:], "uint8")
        bits = _UNSIGNED[dtype]
        tasks = T.truncdiv(groups + (BATCH - 1), T.int64(BATCH))
        with (
            helpers(loads=[(bits, GROUP_SIZE)], rounded=[GROUP_SIZE] if method == "four_over_six" else []),
            T.parallel(tasks) as task,
        ):
            first = T.Bind(task * BATCH)
            count = T.Bind(T.min(T.int64(BATCH), groups - first))
            amax = named("amax", T.alloc_buffer((BATCH,), "float32"))
            bytes_ = named("bytes", T.alloc_buffer((BATCH,), "uint8"))
            steps = named("steps", T.alloc_buffer((BATCH,), "float32"))
            with T.serial(T.int64(BATCH // _LANES)) as v:
                store(amax, T.Broadcast(T.float32(0), _LANES), v * _LANES)
            with T.serial(count) as g:
                T.buffer_store(amax, _largest(_group(weight, first + g, dtype), dtype), [g])
            if method == "four_over_six":
                _choose_four_or_six(rules, amax, count, lambda g: _group(weight, first + g, dtype), dtype)
            with T.serial(T.int64(BATCH // _LANES)) as v:
                block = T.Bind(load_vector(amax, v * _LANES, lanes=_LANES))
                scale = T.Bind(rules.scales(block))
                store(bytes_, scale, v * _LANES)
                store(steps, rules.step(scale), v * _LANES)
            with T.serial(count) as g:
                quotient = T.Bind(
                    _as_float32(_group(weight, first + g, dtype), dtype) / _all(steps[g], GROUP_SIZE)
                )
                store(codes, _packed(_e2m1(quotient)), (first + g) * (GROUP_SIZE // 2))
                T.buffer_store(scales, bytes_[g], [first + g])
    return builder.get()


def _group(weight: Expr, group: Expr, dtype: str) -> Expr:
    """Load the weights of a group, as unsigned integers."""
    bits = _UNSIGNED[dtype]
    size = GROUP_SIZE * int(bits.removeprefix("uint")) // 8
    return T.Bind(load(bits, GROUP_SIZE, advance(weight, group * size)))


def _all(value: Expr, lanes: int) -> Expr:
    return T.Broadcast(value, lanes)


def _uint32(value: int, lanes: int) -> Expr:
    return T.Broadcast(T.uint32(value), lanes)


def _as_float32(raw: Expr, dtype: str) -> Expr:
    lanes = raw.ty.dtype.lanes
    suffix = f"x{lanes}" if lanes > 1 else ""
    if dtype == "bfloat16":
        shift = T.uint32(16) if lanes == 1 else _uint32(16, lanes)
        return T.reinterpret(f"float32{suffix}", T.cast(raw, f"uint32{suffix}") << shift)
    value = T.reinterpret(f"{dtype}{suffix}", raw)
    return value if dtype == "float32" else T.cast(value, f"float32{suffix}")


def _largest(raw: Expr, dtype: str) -> Expr:
    """Return the largest magnitude of a group: floats without their sign order like integers."""
    bits, lanes = raw.ty.dtype.bits, raw.ty.dtype.lanes
    magnitude = T.Bind(raw & _all(getattr(T, f"uint{bits}")((1 << bits - 1) - 1), lanes))
    while lanes > 1:
        lanes //= 2
        low, high = (T.Shuffle([magnitude], list(range(at, at + lanes))) for at in (0, lanes))
        magnitude = T.Bind(T.max(low, high))
    return _as_float32(magnitude, dtype)


class _Rules:
    """The rules of `nvfp4_tvm.scaling` on vectors of `_LANES` blocks, operation by operation."""

    def __init__(self, arithmetic: Arithmetic, method: Method, stored: Expr, global_amax: Expr):
        self.modelopt, self.method = arithmetic == "modelopt", method
        self.stored = stored
        six = T.float32(E2M1_MAX)
        if self.modelopt and method == "amax":
            self.divisor = T.Bind(six * stored)
        elif self.modelopt:
            self.range = T.Bind(global_amax / six)
            most = T.Bind(global_amax * T.float32(CANDIDATE_RANGE) / six)
            most = T.Bind(T.Select(most > T.float32(LEAST_RANGE), most, T.float32(1)))
            self.candidate_scale = T.Bind(T.float32(1) / most * T.float32(E4M3_MAX))
            self.candidate_unit = T.Bind(T.float32(1) / self.candidate_scale)

    def scales(self, amax: Expr) -> Expr:
        """Return the block scales' bytes."""
        if self.modelopt and self.method == "amax":
            scale = T.Bind(amax / _lanes(self.divisor))
            scale = T.Select(scale == _const(0), _const(1), scale)
        elif self.modelopt:
            scale = T.Bind(amax / _const(E2M1_MAX))
            scale = T.Bind(T.Select(scale == _const(0), _const(1), scale))
            scale = scale * _const(FOUR_OVER_SIX_E4M3_MAX) / _lanes(self.range)
        else:
            scale = _lanes(self.stored) * (amax / _const(E2M1_MAX))
            found = T.Bind(_e4m3(T.Bind(T.min(scale, _const(E4M3_MAX)))))
            zero = T.Broadcast(T.uint8(0), _LANES)
            return T.Select(found == zero, T.Broadcast(T.uint8(COMPRESSED_TENSORS_ZERO), _LANES), found)
        return _e4m3(T.Bind(T.min(T.max(T.Bind(scale), _const(E4M3_MIN)), _const(E4M3_MAX))))

    def step(self, scales: Expr) -> Expr:
        """Return what one unit of E2M1 stands for."""
        value = PortableDecoder().e4m3(scales)
        return value * _lanes(self.stored) if self.modelopt else value / _lanes(self.stored)

    def candidate_step(self, amax: Expr) -> Expr:
        """Return the step by which the 4/6 search judges ``amax``."""
        if not self.modelopt:
            return self.step(T.Bind(self.scales(amax)))
        scale = T.Bind(amax / _const(E2M1_MAX) * _lanes(self.candidate_scale))
        found = T.Bind(_e4m3(T.Bind(T.min(scale, _const(E4M3_MAX)))))
        return PortableDecoder().e4m3(found) * _lanes(self.candidate_unit)


def _lanes(value: Expr) -> Expr:
    return _all(value, _LANES)


def _const(value: float) -> Expr:
    return _all(T.float32(value), _LANES)


def _choose_four_or_six(
    rules: _Rules, amax: Buffer, count: Expr, group: Callable[[Expr], Expr], dtype: str
) -> None:
    """Replace the largest magnitudes of blocks that lose less by mapping it to 4: `numerics._block_scales`."""
    steps, wider_steps = (named(name, T.alloc_buffer((BATCH,), "float32")) for name in ("six", "four"))
    with T.serial(T.int64(BATCH // _LANES)) as v:
        block = T.Bind(load_vector(amax, v * _LANES, lanes=_LANES))
        store(steps, rules.candidate_step(block), v * _LANES)
        store(wider_steps, rules.candidate_step(T.Bind(block * _const(WIDER))), v * _LANES)
    with T.serial(count) as g:
        magnitude = T.Bind(_magnitude(_as_float32(group(g), dtype)))
        six, four = (T.Bind(_squared_error(magnitude, T.Bind(of[g]))) for of in (steps, wider_steps))
        T.buffer_store(amax, T.Select(four < six, amax[g] * T.float32(WIDER), amax[g]), [g])


def _magnitude(x: Expr) -> Expr:
    lanes = x.ty.dtype.lanes
    bits = T.reinterpret(f"uint32x{lanes}", x) & _uint32(0x7FFFFFFF, lanes)
    return T.reinterpret(f"float32x{lanes}", bits)


def _squared_error(magnitude: Expr, step: Expr) -> Expr:
    """Return what a block loses, `numerics._squared_error`: a tree of float32, of products that are rounded."""
    lanes = magnitude.ty.dtype.lanes
    divisor = _all(T.Select(step == T.float32(0), T.float32(1), step), lanes)
    error = T.Bind(_rounded_e2m1(T.Bind(magnitude / divisor)) * _all(step, lanes))
    error = T.Bind(T.Bind(rounded(error)) - magnitude)
    return horizontal_sum(T.Bind(rounded(T.Bind(error * error))))


def _rounded_e2m1(magnitude: Expr) -> Expr:
    """Return the E2M1 number next to each magnitude, float32; see `_e2m1`.

    The spacing is half the power of two at or below a number from 1 to 6. TVM would simplify the sum away.
    """
    lanes = magnitude.ty.dtype.lanes
    unsigned, one = f"uint32x{lanes}", _all(T.float32(1), lanes)
    magnitude = T.Bind(T.min(magnitude, _all(T.float32(E2M1_MAX), lanes)))
    exponent = T.reinterpret(unsigned, T.Bind(T.max(magnitude, one))) & _uint32(0x7F800000, lanes)
    shift = T.Bind(T.reinterpret(f"float32x{lanes}", exponent + _uint32(22 << 23, lanes)))
    return T.Bind(rounded(T.Bind(magnitude + shift))) - shift


def _e4m3(value: Expr) -> Expr:
    """Round numbers from 0 to 448 to E4M3, ties to even."""
    lanes = value.ty.dtype.lanes
    bits = T.Bind(T.reinterpret(f"uint32x{lanes}", value))
    # 20 of float32's 23 bits of mantissa go; the bias of the exponent goes from 127 to 7.
    even = (bits >> _uint32(20, lanes)) & _uint32(1, lanes)
    normal = ((bits + _uint32((1 << 19) - 1, lanes) + even) >> _uint32(20, lanes)) - _uint32(
        (127 - 7) << 3, lanes
    )
    # Below 2**-6 the numbers are multiples of 2**-9: the last bit of float32 from 2**14 to 2**15.
    shift = _all(T.float32(2.0**14), lanes)
    subnormal = T.reinterpret(f"uint32x{lanes}", value + shift) - T.reinterpret(f"uint32x{lanes}", shift)
    return T.cast(T.Select(value < _all(T.float32(2.0**-6), lanes), subnormal, normal), f"uint8x{lanes}")


def _e2m1(x: Expr) -> Expr:
    """Return the codes of quotients as `codes.encode_e2m1_unchecked` does, uint32.

    E2M1's numbers are multiples of 1/2 up to 2, of 1 up to 4 and of 2 up to 6. Adding a power of two whose last
    bit is such a multiple rounds to it, ties to even; the code of the right spacing is the least of the three.
    """
    lanes = x.ty.dtype.lanes
    unsigned = f"uint32x{lanes}"
    magnitude = T.Bind(T.min(_magnitude(x), _all(T.float32(E2M1_MAX), lanes)))
    code = None
    for spacing, first in ((0.5, 0), (1.0, 2), (2.0, 4)):
        shift = _all(T.float32(spacing * 2**23), lanes)
        zero = T.reinterpret(unsigned, shift) - _uint32(first, lanes)
        candidate = T.Bind(T.reinterpret(unsigned, magnitude + shift) - zero)
        code = candidate if code is None else T.Bind(T.min(code, candidate))
    sign = T.Select(x < _all(T.float32(0), lanes), _uint32(8, lanes), _uint32(0, lanes))
    return code | sign


def _packed(code: Expr) -> Expr:
    """Put two codes into a byte, even k low."""
    pairs = code.ty.dtype.lanes // 2
    both = T.Bind(T.reinterpret(f"uint64x{pairs}", code))
    return T.cast(both | both >> T.Broadcast(T.uint64(28), pairs), f"uint8x{pairs}")
