"""Which scales a tensor and its blocks get, in each library's arithmetic.

See `nvfp4_tvm.numerics` for the formulas; the classes here follow them operation by operation, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import ml_dtypes
import numpy as np

from nvfp4_tvm.codes import E2M1_MAX, E4M3_MAX, E4M3_MIN, E4M3_VALUES, encode_e4m3
from nvfp4_tvm.errors import NVFP4Error, ShapeError

FOUR_OVER_SIX_E4M3_MAX = 256.0
"""What ``method="four_over_six"`` maps the largest block scale to, so that scaling it by 6/4 still fits E4M3
(ModelOpt's ``E4M3_MAX_46``)."""

WIDER = 6 / 4
"""What the largest magnitude of a block is multiplied by so that it maps to 4."""
CANDIDATE_RANGE = E4M3_MAX / FOUR_OVER_SIX_E4M3_MAX
LEAST_RANGE = 2.0**-24
"""Of ModelOpt's 4/6 search, see `ModelOptRules.candidate_step`."""

Method = Literal["amax", "four_over_six"]
Arithmetic = Literal["modelopt", "compressed-tensors"]

# Elements per step: its float32 temporaries stay in a core's cache (1.4x faster than steps of 1 Mi elements).
CHUNK = 1 << 17
# Integers that order like the magnitudes of the floats: (view, mask of the magnitude, bits of infinity).
MAGNITUDE_BITS = {
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7FFF, 0x7F80),
    np.dtype(np.float16): (np.uint16, 0x7FFF, 0x7C00),
    np.dtype(np.float32): (np.uint32, 0x7FFFFFFF, 0x7F800000),
    np.dtype(np.float64): (np.uint64, 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
}


def is_finite(array: np.ndarray) -> bool:
    """Return whether a float array holds neither NaN nor infinities, by its bits: on bfloat16 ten times faster."""
    view, mask, inf = MAGNITUDE_BITS[array.dtype]
    return not array.size or int((array.view(view) & view(mask)).max()) < inf


def amax(weight: np.ndarray, *, name: str = "weight") -> np.float32:
    """Return the largest magnitude of `weight` as float32.

    Parameters
    ----------
    weight : np.ndarray
        bfloat16, float16, float32 or float64, any shape with at least one element.
    name : str
        What to call the tensor in an error.

    Raises
    ------
    ShapeError
        If the dtype is another, or the array is empty.
    NVFP4Error
        If an element is NaN or infinite, in float32.
    """
    if weight.dtype not in MAGNITUDE_BITS:
        raise ShapeError(
            f"{name}: found dtype {weight.dtype}, expected bfloat16, float16, float32 or float64"
        )
    if weight.size == 0:
        raise ShapeError(
            f"{name}: found an empty tensor of shape {weight.shape}, expected at least one weight"
        )
    view, mask, inf = MAGNITUDE_BITS[weight.dtype]
    # Integer comparison of the bits finds NaN, infinity and the maximum in one pass.
    top = 0
    for rows in row_blocks(np.atleast_2d(weight)):
        top = max(top, int((rows.view(view) & view(mask)).max()))
    if top >= inf:
        what = "an infinite value" if top == inf else "NaN"
        raise NVFP4Error(
            f"{name}: found {what}, expected finite weights: repair the tensor or exclude its layer"
        )
    largest = np.array([top], view).view(weight.dtype)[0]
    with np.errstate(over="ignore"):
        result = np.float32(largest)
    if not np.isfinite(result):
        raise NVFP4Error(f"{name}: found {largest}, expected magnitudes within float32: rescale the tensor")
    return result


def global_scale_from_amax(
    largest: float | np.float32,
    *,
    method: Method = "amax",
    arithmetic: Arithmetic = "modelopt",
    name: str = "weight",
) -> np.float32:
    """Return the global scale as the library named by `arithmetic` stores it.

    Parameters
    ----------
    largest : float
        The largest magnitude of the tensor, or of all tensors that share the global scale.
    method : {"amax", "four_over_six"}
        The divisor is 6 * 448 for "amax", 6 * 256 for "four_over_six".
    arithmetic : {"modelopt", "compressed-tensors"}
        "modelopt": ``largest / divisor``, the multiplier. "compressed-tensors": ``divisor / largest``, its
        reciprocal, as ``weight_global_scale`` holds it.

    Raises
    ------
    NVFP4Error
        If `largest` is zero, not finite, or so small that the scale is no normal float32 number.
    """
    check_choices(method, arithmetic)
    largest = np.float32(largest)
    if not np.isfinite(largest) or largest < 0:
        raise NVFP4Error(f"{name}: found amax {largest}, expected a positive finite number")
    if largest == 0:
        raise NVFP4Error(
            f"{name}: found only zeros, expected a nonzero weight: exclude this layer from quantization"
        )
    over = np.float32(divisor(method))
    scale = largest / over
    # Below this, the products with small block scales lose bits, and the stored reciprocal overflows.
    if scale < np.finfo(np.float32).tiny:
        raise NVFP4Error(
            f"{name}: found amax {largest:.3g}, expected at least "
            f"{over * np.finfo(np.float32).tiny:.3g}: the global scale would be no normal float32 "
            "number; rescale the tensor or exclude its layer"
        )
    # PyTorch computes number / tensor as reciprocal times number: the library stores two roundings.
    return scale if arithmetic == "modelopt" else np.float32(1) / largest * over


def divisor(method: Method) -> float:
    """Return what the largest magnitude is divided by to give the global scale."""
    return E2M1_MAX * (E4M3_MAX if method == "amax" else FOUR_OVER_SIX_E4M3_MAX)


def check_choices(method: str, arithmetic: str) -> None:
    """Refuse unknown methods and arithmetics by name."""
    for what, value, choices in (("method", method, Method), ("arithmetic", arithmetic, Arithmetic)):
        if value not in get_args(choices):
            raise NVFP4Error(
                f"found {what} {value!r}, expected one of {', '.join(map(repr, get_args(choices)))}"
            )


#: The E4M3 byte (0.125) that compressed-tensors puts for a zero scale.
COMPRESSED_TENSORS_ZERO = int(encode_e4m3(0.125))


class ModelOptRules:
    """Block scales and codes in the order of operations of ModelOpt's ``NVFP4QTensor``."""

    def __init__(self, global_scale: np.float32, global_amax: np.float32, method: Method):
        self.stored, self.amax, self.method = global_scale, global_amax, method
        self.multiplier = global_scale

    def scales(self, block_amax: np.ndarray) -> np.ndarray:
        """Return the E4M3 bytes of blocks of this maximum magnitude."""
        if self.method == "amax":  # get_weights_scaling_factor
            s = block_amax / (np.float32(E2M1_MAX) * self.stored)
            s[s == 0] = 1
        else:  # get_weights_scaling_factor_from_quantizer, static: another order of operations
            s = block_amax / np.float32(E2M1_MAX)
            s[s == 0] = 1
            s = s * np.float32(FOUR_OVER_SIX_E4M3_MAX) / (self.amax / np.float32(E2M1_MAX))
        return np.clip(s, E4M3_MIN, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

    def step(self, scales: np.ndarray) -> np.ndarray:
        """Return what one unit of E2M1 stands for."""
        return E4M3_VALUES[scales] * self.stored

    def candidate_step(self, block_amax: np.ndarray) -> np.ndarray:
        """Return the step by which the 4/6 search judges `block_amax`.

        ModelOpt: ``compute_fp4_scales`` over ``_fp8_eager``; float32 rounding may set it apart from `step`.
        """
        range_max = self.amax * np.float32(CANDIDATE_RANGE) / np.float32(E2M1_MAX)
        # PyTorch computes number / tensor as reciprocal times number.
        scale = (
            np.float32(1) / (range_max if range_max > LEAST_RANGE else np.float32(1)) * np.float32(E4M3_MAX)
        )
        return E4M3_VALUES[encode_e4m3(block_amax / np.float32(E2M1_MAX) * scale)] * (np.float32(1) / scale)


class CompressedTensorsRules:
    """Block scales and codes in the order of operations of ``compressed_tensors.quantization``."""

    def __init__(self, global_scale: np.float32, global_amax: np.float32, method: Method):
        self.stored, self.amax, self.method = global_scale, global_amax, method
        self.multiplier = np.float32(1) / global_scale

    def scales(self, block_amax: np.ndarray) -> np.ndarray:
        """Return the E4M3 bytes of blocks of this maximum magnitude."""
        s = encode_e4m3(self.stored * (block_amax / np.float32(E2M1_MAX)))
        s[s == 0] = COMPRESSED_TENSORS_ZERO
        return s

    def step(self, scales: np.ndarray) -> np.ndarray:
        """Return what one unit of E2M1 stands for."""
        return E4M3_VALUES[scales] / self.stored

    def candidate_step(self, block_amax: np.ndarray) -> np.ndarray:
        """Return the step by which the 4/6 search judges `block_amax`."""
        return self.step(self.scales(block_amax))


def row_blocks(weight: np.ndarray, group_size: int = 1) -> Iterator[np.ndarray]:
    """Yield contiguous pieces of about `CHUNK` elements, whole groups, in row-major order."""
    N, K = weight.shape
    if weight.flags.c_contiguous:
        flat = weight.reshape(-1)
        step = max(1, CHUNK // group_size) * group_size
        for start in range(0, flat.size, step):
            yield flat[start : start + step]
    else:
        step = max(1, CHUNK // max(K, 1))
        for start in range(0, N, step):
            yield np.ascontiguousarray(weight[start : start + step]).reshape(-1)
