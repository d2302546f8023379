"""The numbers of NVFP4, in NumPy: quantize and dequantize, on top of `codes` and `scaling`.

Convention of this project, everywhere: ``w = e2m1(code) * e4m3(scale) * global_scale``. ModelOpt stores this
global scale as ``weight_scale_2``; compressed-tensors stores its reciprocal as ``weight_global_scale``.

NVIDIA's NVFP4, as ModelOpt and compressed-tensors write it: E2M1 codes in groups of 16 along K with one E4M3
scale each, and one FP32 scale per tensor.

The two libraries round differently, so `quantize` lets the caller choose whose arithmetic to follow
(``arithmetic``), bit for bit and all in float32; ``a`` is a block's maximum magnitude, ``A`` the tensor's:

=====================  ========================================  ==========================================
step                   ``"modelopt"``                            ``"compressed-tensors"``
=====================  ========================================  ==========================================
global scale           ``gs = A / 2688``                         ``g = (1 / A) * 2688``; ``gs = 1 / g``
block scale            ``s = e4m3(a / (6 * gs))``                ``s = e4m3(g * (a / 6))``
an all-zero block      ``s = 1``                                 ``s = 0.125``
scale that underflows  clamped to ``2**-9`` before the cast      becomes 0.125 after the cast
code                   ``e2m1(x / (s * gs))``                    ``e2m1(x / (s / g))``
=====================  ========================================  ==========================================

2688 = 6 * 448, the largest E2M1 times the largest E4M3 number.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike

from nvfp4_tvm.codes import (
    E2M1_MAX,
    E2M1_VALUES,
    E4M3_MAX,
    E4M3_MIN,
    E4M3_VALUES,
    GROUP_SIZE,
    decode_e2m1,
    decode_e4m3,
    encode_e2m1,
    encode_e2m1_unchecked,
    encode_e4m3,
    pack_codes,
    round_e2m1,
    unpack_codes,
)
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.scaling import (
    CHUNK,
    FOUR_OVER_SIX_E4M3_MAX,
    MAGNITUDE_BITS,
    WIDER,
    Arithmetic,
    CompressedTensorsRules,
    Method,
    ModelOptRules,
    amax,
    check_choices,
    divisor,
    global_scale_from_amax,
    row_blocks,
)

__all__ = [
    "E2M1_MAX",
    "E2M1_VALUES",
    "E4M3_MAX",
    "E4M3_MIN",
    "E4M3_VALUES",
    "FOUR_OVER_SIX_E4M3_MAX",
    "GROUP_SIZE",
    "Arithmetic",
    "Method",
    "amax",
    "decode_e2m1",
    "decode_e4m3",
    "dequantize",
    "encode_e2m1",
    "encode_e4m3",
    "global_scale_from_amax",
    "pack_codes",
    "quantize",
    "unpack_codes",
]

_MAX_THREADS = 8
# Both values of a packed byte: float32[256, 2].
_PAIR_VALUES = np.stack([E2M1_VALUES[np.arange(256) & 15], E2M1_VALUES[np.arange(256) >> 4]], axis=1)


def quantize(
    weight: np.ndarray,
    *,
    method: Method = "amax",
    global_scale: float | np.float32 | None = None,
    global_amax: float | np.float32 | None = None,
    arithmetic: Arithmetic = "modelopt",
    group_size: int = GROUP_SIZE,
    name: str = "weight",
) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Quantize a weight to NVFP4.

    Memory: the outputs (0.5625 bytes a weight) and a few MiB; the input may be memory-mapped.

    Parameters
    ----------
    weight : np.ndarray
        ``[N, K]``, bfloat16, float16, float32 or float64 (rounded to float32 first), K a multiple of
        `group_size`.
    method : {"amax", "four_over_six"}
        "amax" maps the maximum of each block to 6. "four_over_six" is ModelOpt's option of that name: the
        global scale is amax / (6 * 256), and each block maps its maximum to 6 or to 4, whichever has the
        smaller sum of squared errors (6 if equal). ModelOpt sums in the order of the device it runs on; here
        the sum is a fixed tree in float32, so a block whose two errors agree to float32 rounding may choose
        the other way. compressed-tensors has no such option; with its arithmetic this is the same search on
        its scales.
    global_scale : float, optional
        Use this multiplier instead of one computed from the weight.
    global_amax : float, optional
        Compute the global scale from this maximum, which several tensors may share (vLLM wants q, k, v and
        gate, up to share one). Give this rather than `global_scale` for bit-exact results.
    arithmetic : {"modelopt", "compressed-tensors"}
        Whose order of float32 operations to follow; see the module's table.
    group_size : int
        Weights per block scale, even.
    name : str
        What to call the tensor in an error.

    Returns
    -------
    codes : np.ndarray
        uint8 ``[N, K/2]``, even k in the low nibble.
    scales : np.ndarray
        uint8 ``[N, K/group_size]``, E4M3 bytes.
    global_scale : np.float32
        The multiplier, ``w = code * scale * global_scale``. With compressed-tensors' arithmetic the float32
        reciprocal of what that library stores, `global_scale_from_amax`.

    Raises
    ------
    ShapeError
        If the shape or dtype is wrong.
    NVFP4Error
        If the weight holds NaN or infinities, is all zeros (without a given global scale), or a choice is
        unknown.
    """
    check_choices(method, arithmetic)
    if group_size < 2 or group_size % 2:
        raise ShapeError(f"{name}: found group size {group_size}, expected an even number")
    if weight.ndim != 2 or weight.shape[1] % group_size or weight.shape[1] == 0:
        raise ShapeError(
            f"{name}: found shape {tuple(weight.shape)}, expected [N, K] with K a multiple of "
            f"{group_size}: exclude this layer from quantization"
        )
    if global_scale is not None and global_amax is not None:
        raise NVFP4Error(f"{name}: found both global_scale and global_amax, expected one of them")
    own_amax = amax(weight, name=name)  # also refuses NaN, infinities and unknown dtypes
    if global_scale is not None:
        multiplier = np.float32(global_scale)
        if not (np.isfinite(multiplier) and multiplier >= np.finfo(np.float32).tiny):
            raise NVFP4Error(
                f"{name}: found global scale {global_scale}, expected a positive normal float32 number"
            )
        stored = multiplier if arithmetic == "modelopt" else np.float32(1) / multiplier
        shared_amax = multiplier * np.float32(divisor(method))
    else:
        shared_amax = own_amax if global_amax is None else np.float32(global_amax)
        stored = global_scale_from_amax(shared_amax, method=method, arithmetic=arithmetic, name=name)
    kind = ModelOptRules if arithmetic == "modelopt" else CompressedTensorsRules
    rules = kind(stored, shared_amax, method)

    N, K = weight.shape
    codes = np.empty((N, K // 2), np.uint8)
    scales = np.empty((N, K // group_size), np.uint8)
    packed_groups, scale_groups = codes.reshape(-1, group_size // 2), scales.reshape(-1)

    def convert(start: int, rows: np.ndarray) -> None:
        # [group_size, groups]: operations on a group's scale then run along contiguous memory
        x = np.ascontiguousarray(rows.reshape(-1, group_size).T).astype(np.float32)
        # Overflow happens only if the caller's global scale is far too small; codes and scales then saturate.
        with np.errstate(over="ignore"):
            s = _block_scales(x, rules)
            q = encode_e2m1_unchecked(x / rules.step(s))
        scale_groups[start : start + s.size] = s
        packed_groups[start : start + s.size] = (q[0::2] | (q[1::2] << 4)).T

    # NumPy lets go of the interpreter lock while it computes.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        done = 0
        running: deque[Future[None]] = deque()
        for rows in row_blocks(weight, group_size):
            running.append(pool.submit(convert, done, rows))
            done += rows.size // group_size
            if len(running) > 2 * _MAX_THREADS:  # bounds the copies of a weight that is not contiguous
                running.popleft().result()
        for future in running:
            future.result()
    return codes, scales, np.float32(rules.multiplier)


def _block_scales(x: np.ndarray, rules: ModelOptRules | CompressedTensorsRules) -> np.ndarray:
    block_amax = np.abs(x).max(axis=0)
    if rules.method == "amax":
        return rules.scales(block_amax)
    wider = block_amax * np.float32(WIDER)
    error6 = _squared_error(x, rules.candidate_step(block_amax))
    four = _squared_error(x, rules.candidate_step(wider)) < error6
    return rules.scales(np.where(four, wider, block_amax))


def _squared_error(x: np.ndarray, step: np.ndarray) -> np.ndarray:
    # A zero step (the scale rounded to zero) reconstructs zeros, whatever the codes.
    magnitude = np.abs(x)
    error = round_e2m1(magnitude / np.where(step == 0, np.float32(1), step))
    error *= step
    error -= magnitude
    error *= error
    while error.shape[0] % 2 == 0:
        half = error.shape[0] // 2
        error = error[:half] + error[half:]
    return error.sum(axis=0)


def dequantize(
    codes: np.ndarray,
    scales: np.ndarray,
    global_scale: float | np.float32,
    dtype: DTypeLike = np.float64,
    *,
    group_size: int = GROUP_SIZE,
) -> np.ndarray:
    """Return the weights that NVFP4 data stand for, ``e2m1(code) * e4m3(scale) * global_scale``.

    Code times block scale has at most 6 significant bits, so it is exact even in bfloat16; times a float32
    global scale it has at most 30, so float64 is exact and float32 rounds once. Narrower types are rounded
    from float32.

    Parameters
    ----------
    codes : np.ndarray
        uint8 ``[N, K/2]``, packed as `pack_codes` does.
    scales : np.ndarray
        ``[N, K/group_size]`` E4M3 bytes (uint8 or float8_e4m3fn).
    global_scale : float
        The multiplier.
    dtype : dtype_like
        Of the result: float64, float32, float16 or bfloat16.

    Returns
    -------
    np.ndarray
        ``[N, K]``.

    Raises
    ------
    ShapeError
        If shapes or dtypes do not fit together.
    """
    dtype = np.dtype(dtype)
    if codes.dtype != np.uint8 or codes.ndim != 2:
        raise ShapeError(f"dequantize: found codes {codes.dtype} {codes.shape}, expected uint8 [N, K/2]")
    N, K = codes.shape[0], codes.shape[1] * 2
    if K % group_size or scales.shape != (N, K // group_size):
        raise ShapeError(
            f"dequantize: found scales of shape {scales.shape} for codes of shape {codes.shape}, expected "
            f"[{N}, {K}/{group_size}]"
        )
    if dtype not in MAGNITUDE_BITS:
        raise ShapeError(f"dequantize: found dtype {dtype}, expected float64, float32, float16 or bfloat16")
    wide = np.float64 if dtype == np.float64 else np.float32
    out = np.empty((N, K), dtype)
    values = _PAIR_VALUES.astype(wide)
    rows = max(1, CHUNK // max(K, 1))
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, N, rows):
            part = slice(start, start + rows)
            w = values[codes[part]].reshape(-1, K // group_size, group_size)
            w *= decode_e4m3(scales[part])[..., None]
            w *= wide(global_scale)
            out[part] = w.reshape(-1, K)
    return out
