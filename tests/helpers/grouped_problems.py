"""Problems on experts, with every way of routing that matters, and the float64 truth about them.

``python tests/helpers/grouped_problems.py sm_90`` compiles what the GPU tests run into the cache of kernels.
"""

from dataclasses import dataclass

import ml_dtypes  # noqa: F401  # names bfloat16 for NumPy
import numpy as np
from relax_modules import NUMPY, Weight, activations

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_grouped import GroupedGemm
from nvfp4_tvm.schedules.gemm_plain_grouped import PlainGrouped
from nvfp4_tvm.schedules.gemv_grouped import GroupedGemv
from nvfp4_tvm.schedules.gemv_kernel import GemvConfig
from nvfp4_tvm.schedules.grouped import GroupedProblem

#: How rows find their experts: at random, all with one, few with any, all with the last.
ROUTINGS = ("random", "one", "few", "last")


def route(rng, problem, M, how="random"):
    """Return the expert of each of M rows, sorted where the problem wants them to be."""
    E = problem.experts
    choices = {
        "random": lambda: rng.integers(0, E, M),
        "one": lambda: np.full(M, rng.integers(0, E)),
        "few": lambda: rng.choice(rng.choice(E, min(E, 3), replace=False), M),
        "last": lambda: np.full(M, E - 1),
    }
    chosen = choices[how]()
    return chosen if problem.selected else np.sort(chosen)


def indptr_of(problem, experts):
    """Return what tells a kernel the expert of each row."""
    if problem.selected:
        return experts[None].astype(np.int32)
    return np.searchsorted(experts, np.arange(problem.experts + 1)).astype(np.int32)


@dataclass
class Experts:
    """Weights of one problem: every code and finite scale byte, one global scale a row."""

    problem: GroupedProblem
    weights: list
    packed: dict

    @classmethod
    def random(cls, problem, seed=0):
        rng = np.random.default_rng(seed)
        weights = [Weight.random(rng, problem.N, problem.K) for _ in range(problem.experts)]
        for weight in weights:
            # Results of one magnitude, within float16, so that no row hides another's error
            weight.rows[:] = rng.uniform(0.5, 2, problem.N) * 1e-6
        packed = [layout.pack(*weight.arrays()) for weight in weights]
        fields = ("words", "scales", "global_scale")
        return cls(problem, weights, {name: np.stack([getattr(p, name) for p in packed]) for name in fields})

    def case(self, M, routing="random", seed=0):
        """Return operands by name and the exact result, for M rows."""
        problem, rng = self.problem, np.random.default_rng(seed)
        experts = route(rng, problem, M, routing)
        x = activations(rng, (1 if problem.shared_x else M, problem.K), problem.x_dtype)
        expected = np.empty((M, problem.N))
        for e in np.unique(experts):
            rows = np.flatnonzero(experts == e)
            expected[rows] = x[rows if len(x) == M else [0]].astype(np.float64) @ self.weights[e].exact().T
        if problem.activation == "silu_mul":
            gate, up = np.moveaxis(expected.reshape(M, -1, 2, 8), 2, 0).reshape(2, M, -1)
            with np.errstate(over="ignore"):
                expected = gate / (1 + np.exp(-gate)) * up
        return {"x": x, **self.packed, "indptr": indptr_of(problem, experts)}, expected


def empty(problem, M):
    """Output full of NaN."""
    return np.full((M, problem.out_N), np.nan).astype(NUMPY[problem.out_dtype])


def check(found, expected):
    """Compare with the error of the exact result rounded once, and little for sums in fp32, for each row."""
    assert found.shape == expected.shape
    norm = np.linalg.norm(expected, axis=1)
    rounded = expected.astype(found.dtype).astype(np.float64)
    error = np.linalg.norm(found.astype(np.float64) - expected, axis=1) / norm
    rounding = np.linalg.norm(rounded - expected, axis=1) / norm
    assert (error <= 1.2 * rounding + 2e-5).all(), (error.max(), rounding.max())
    total, once = (np.linalg.norm(a - expected) for a in (found.astype(np.float64), rounded))
    assert total <= 1.02 * once + 2e-5 * np.linalg.norm(expected), (total, once)


def _selected(N, K, M, dtype, **features):
    return GroupedProblem(N, K, MRange(M, M), dtype, selected=True, **features)


SMALL = GroupedProblem(40, 144, experts=8)
#: What runs on a GPU: problems with a rule that answers them for every M, or None for the dispatch.
GPU_CASES = [
    (GroupedProblem(96, 272, experts=8), None),
    (GroupedProblem(64, 256, MRange(1, 4096), experts=128), None),
    (GroupedProblem(100, 2880, x_dtype="float16", out_dtype="float32", experts=8), None),
    (
        GroupedProblem(512, 1040, x_dtype="float16", out_dtype="float16", experts=8, activation="silu_mul"),
        None,
    ),
    (GroupedProblem(48, 64, x_dtype="float32", out_dtype="float32", experts=5), None),
    (_selected(100, 2880, 8, "bfloat16", experts=128, shared_x=True), None),
    (_selected(96, 272, 2, "float16", out_dtype="float16", experts=8), None),
    (_selected(96, 272, 3, "bfloat16", experts=8, shared_x=True, activation="silu_mul"), None),
    (_selected(48, 64, 2, "float32", out_dtype="float32", experts=5, shared_x=True), None),
    (SMALL, GroupedGemm(SMALL, MmaConfig(16, 32, 16, 32, token_tiles=1))),
    (SMALL, GroupedGemm(SMALL, MmaConfig(64, 128, 64, 64, k_warps=2, stages=3))),
    (SMALL, PlainGrouped()),
]
#: Tiles of every number of eights that the GEMV family has.
GPU_GEMVS = [
    (
        GroupedProblem(40, 1040, MRange(1, 8 * high), experts=8),
        GroupedGemv(SMALL, GemvConfig(KS=3, NT=2, pdl=True)),
    )
    for high in (4, 9, 16, 22)
]


def gpu_library(problem, rule, arch):
    """Return the compiled library of a GPU case."""
    from nvfp4_tvm.target import cuda_target
    from nvfp4_tvm.torch_library import find_library

    kernel = None if rule is None else rule.apply(problem, cuda_target(arch).target)
    return find_library(problem, arch, kernel)


def run_on_gpu(function, workspace_bytes, problem, case, M):
    """Run a host function twice on poisoned outputs; return the output, bitwise the same both times."""
    import tvm

    device = tvm.cuda(0)
    operands = [tvm.runtime.tensor(array, device) for array in case.values()]
    workspace = tvm.runtime.tensor(np.full(max(workspace_bytes, 1), 0xFF, np.uint8), device)
    outputs = []
    for _ in range(2):
        out = tvm.runtime.tensor(empty(problem, M), device)
        function(*operands, out, workspace)
        outputs.append(out.numpy())
    assert outputs[0].tobytes() == outputs[1].tobytes()
    return outputs[0]


if __name__ == "__main__":
    import sys

    for case in [*GPU_CASES, *GPU_GEMVS]:
        for arch in sys.argv[1:]:
            gpu_library(*case, arch)
            print(*case, arch, flush=True)
