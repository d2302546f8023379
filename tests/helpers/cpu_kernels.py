"""Random NVFP4 problems, their float64 answers, and CPU kernels compiled once a test run."""

from functools import cache

import numpy as np
import tvm
from tvm.target import Target

from nvfp4_tvm import layout, numerics
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem
from nvfp4_tvm.target import resolve_target

#: Relative Frobenius error of the fp32 accumulation alone, and with the final rounding (rms, worst case).
ACCUMULATION = 2e-6
ROUNDING = {"float32": (0.0, 0.0), "bfloat16": (1.70e-3, 2.0**-9), "float16": (2.2e-4, 2.0**-12 * 2)}


def host() -> Target:
    return resolve_target("llvm").target


def random_weight(
    rng: np.random.Generator, N: int, K: int, scale: tuple[float, float] = (1e-6, 1e3)
) -> layout.PackedWeight:
    """Every code, every finite non-negative scale byte, and one global scale per part of the rows."""
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    # Byte 0 comes last, so that a small weight is not all zeros.
    scales = np.resize(np.append(rng.permutation(np.arange(1, 127)), 0), N * K // 16).astype(np.uint8)
    parts = np.exp(rng.uniform(*np.log(scale), 3)).astype(np.float32)
    global_scale = parts[np.sort(rng.integers(0, 3, N))]
    return layout.pack(codes, scales.reshape(N, K // 16), global_scale)


def random_activations(
    rng: np.random.Generator, M: int, K: int, dtype: str, outliers: bool = True
) -> np.ndarray:
    """Normal numbers, with outliers of size 1e4 in a few columns as language models have them."""
    x = rng.standard_normal((M, K))
    if outliers:
        x[:, rng.integers(0, K, max(1, K // 64))] *= 1e4
    return x.astype(dtype)


def exact(weight: layout.PackedWeight) -> np.ndarray:
    """The weight in float64 without its global scale."""
    codes, scales, _ = layout.unpack(weight)
    values = numerics.decode_e2m1(numerics.unpack_codes(codes)).astype(np.float64)
    return values * np.repeat(numerics.decode_e4m3(scales).astype(np.float64), 16, axis=1)


@cache
def compiled(rule: KernelRule, problem: MatmulProblem, target: str = "") -> tvm.runtime.Module:
    where = Target({"kind": "llvm", "mcpu": target}) if target else host()
    kernel = rule.apply(problem, where)
    assert kernel is not None and kernel.attrs["tirx.is_scheduled"] == 1
    return tvm.compile(kernel, target=where)[str(kernel.attrs["global_symbol"])]


def run(
    kernel, x: np.ndarray, weight: layout.PackedWeight, bias: np.ndarray | None, out_dtype: str
) -> np.ndarray:
    inputs = [x, weight.words, weight.scales, weight.global_scale] + ([] if bias is None else [bias])
    out = tvm.runtime.tensor(np.full((len(x), weight.N), np.nan, out_dtype))
    kernel(*map(tvm.runtime.tensor, inputs), out)
    return out.numpy()


def check(
    rule: KernelRule, problem: MatmulProblem, M: int, seed: int, target: str = "", outliers: bool = True
) -> None:
    """Run ``problem`` on random numbers and compare with float64.

    With outliers few elements make up most of the norm, so only the worst case bounds the final rounding.
    """
    rng = np.random.default_rng(seed)
    # float16 ends at 65504: keep the results inside.
    span = (1e-6, 1e-5) if "float16" in (problem.x_dtype, problem.out_dtype) else (1e-6, 1e3)
    weight = random_weight(rng, problem.N, problem.K, span)
    x = random_activations(rng, M, problem.K, problem.x_dtype, outliers)
    gs = weight.global_scale[: problem.N].astype(np.float64)
    bias = (rng.standard_normal(problem.N) * gs * 1e3).astype(problem.x_dtype) if problem.bias else None
    got = run(compiled(rule, problem, target), x, weight, bias, problem.out_dtype).astype(np.float64)
    expected = x.astype(np.float64) @ exact(weight).T * gs
    if bias is not None:
        expected = expected + bias.astype(np.float64)
    # Without the global scales, so that every row counts.
    error = np.linalg.norm((got - expected) / gs) / np.linalg.norm(expected / gs)
    typical, worst = ROUNDING[problem.out_dtype]
    assert error <= ACCUMULATION + (worst if outliers else typical), f"{problem}, M = {M}: {error:.3e}"
