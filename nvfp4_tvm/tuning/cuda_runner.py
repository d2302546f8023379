"""Times of compiled kernels on a CUDA device: checked first, then from a CUDA graph over cold weights.

A time counts only if the kernel's result is right: against a float64 product with the exactly dequantized
weights, in an output that was NaN before, with a workspace full of NaNs, twice with the same bits. Weights are
cold: a ring of copies, together four times the L2, is launched once around in one CUDA graph; a time is the
median over replays.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nvfp4_tvm.codegen.cuda_runtime import load_cuda_runtime
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.layout import GROUP_SIZE
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.model import moved_bytes
from nvfp4_tvm.schedules.records import MEASURED
from nvfp4_tvm.torch_device import device_arch
from nvfp4_tvm.torch_library import Library, load_library
from nvfp4_tvm.torch_ops import decode
from nvfp4_tvm.torch_packed import PackedWeight, pack
from nvfp4_tvm.tuning.runner import AT_ONCE, Device
from nvfp4_tvm.tuning.trial import Outcome, Trial

#: Largest relative Frobenius error by the dtype of the output: its rounding (1.66e-3 and 2.1e-4 rms) and the
#: accumulation (7e-6).
ERROR = {"bfloat16": 1.70e-3, "float16": 2.2e-4, "float32": 5e-5}
#: Few elements can be off by more on average, rounded as well as can be: times the error of rounding them once.
_SLACK = 1.01
#: One element may be off by its rounding and by this share of the result's root mean square.
_ELEMENT = 1e-3
#: Exact results are made for so many rows at each end.
_REFERENCE_ROWS = 128
#: Times of the L2 that a ring of weights is larger.
_COLD = 4
#: Microseconds that the replays of a search and of later rounds should take, and bounds on their number.
_SEARCH_US, _FINAL_US = 3_000.0, 12_000.0
_LEAST, _MOST = 5, 40
#: A global scale that keeps results of float16 in its range.
_GLOBAL_SCALE = 1 / (6 * 448)


def capture(launches: Sequence[Callable[[], None]]) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of some launches.

    Not by ``torch.cuda.graph``, which collects garbage and empties torch's cache first: tenths of a second.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            for launch in launches:
                launch()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def time_launches(launches: Sequence[Callable[[], None]], budget_us: float) -> float:
    """Return the median microseconds of a launch over replays of one graph that holds them all.

    Parameters
    ----------
    launches : sequence of callable
        Already run once: machine code is loaded at the first launch.
    budget_us : float
        What the replays should take together.
    """
    graph = capture(launches)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def replay() -> float:
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e3

    replay()
    once = replay()
    count = min(_MOST, max(_LEAST, round(budget_us / once)))
    return statistics.median(replay() for _ in range(count)) / len(launches)


def copy_bandwidth(nbytes: int = 1 << 30) -> float:
    """Return bytes a second that an elementwise kernel reads and writes."""
    source = torch.empty(nbytes // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    torch.neg(source, out=target)
    return 2 * nbytes / (time_launches([lambda: torch.neg(source, out=target)] * 2, 2 * _FINAL_US) * 1e-6)


class _Bench:
    """Operands and exact results of one weight."""

    def __init__(self, problem: MatmulProblem, l2_bytes: int) -> None:
        self.problem = problem
        N, K = problem.N, problem.K
        generator = torch.Generator("cuda").manual_seed(N * K)
        codes = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda", generator=generator)
        scales = torch.rand(N, K // GROUP_SIZE, device="cuda", generator=generator) * 200 + 16
        bytes_ = scales.to(torch.float8_e4m3fn).view(torch.uint8)
        rows = torch.full((N,), _GLOBAL_SCALE, device="cuda")
        self.exact = decode(codes, bytes_).double() * float(torch.tensor(_GLOBAL_SCALE))
        first = pack(codes, bytes_, rows)
        count = max(2, math.ceil(_COLD * l2_bytes / first.nbytes))
        self.ring = [first, *(_copy(first) for _ in range(count - 1))]
        self.l2_bytes = l2_bytes
        self._rows: dict[int, tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]] = {}

    def operands(self, M: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Return x and what the epilogue takes, the rows that are checked, and their exact values."""
        if M not in self._rows:
            self._rows[M] = self._make(M)
        return self._rows[M]

    def _make(self, M: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        problem = self.problem
        dtype, out_dtype = getattr(torch, problem.x_dtype), getattr(torch, problem.out_dtype)
        generator = torch.Generator("cuda").manual_seed(M)

        def draw(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.randn(*shape, device="cuda", generator=generator).to(dtype)

        tensors = [draw(M, problem.K, dtype=dtype)]
        ends = torch.cat(
            (torch.arange(min(M, _REFERENCE_ROWS)), torch.arange(max(0, M - _REFERENCE_ROWS), M))
        )
        rows = ends.unique().cuda()
        exact = tensors[0][rows].double() @ self.exact.T
        if problem.bias:
            tensors.append(draw(problem.N, dtype=dtype))
            exact += tensors[-1].double()
        if problem.activation == "silu_mul":
            gate, up = exact.unflatten(1, (-1, 2, 8)).unbind(2)
            exact = (torch.nn.functional.silu(gate) * up).flatten(1)
        if problem.residual:
            tensors.append(draw(M, problem.out_N, dtype=out_dtype))
            exact += tensors[-1][rows].double()
        return tensors, rows, exact


def _copy(weight: PackedWeight) -> PackedWeight:
    tensors = (tensor.clone() for tensor in (weight.words, weight.scales, weight.global_scale))
    return PackedWeight(weight.N, weight.K, *tensors)


class CudaRunner:
    """Times on one CUDA device; runs in the process that may crash (:class:`.runner.IsolatedRunner`).

    Parameters
    ----------
    index : int
        Of the device.

    Raises
    ------
    TargetError
        If there is no such device, or TVM's CUDA runtime does not load.
    """

    compiles = True

    def __init__(self, index: int = 0) -> None:
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise TargetError(f"no CUDA device {index} here; tune on the machine with the GPU")
        if not load_cuda_runtime():
            raise TargetError(
                "TVM's CUDA runtime does not load here: run pip install 'nvidia-cuda-runtime>=13,<14'"
            )
        torch.cuda.set_device(index)
        properties = torch.cuda.get_device_properties(index)
        self._l2 = properties.L2_cache_size
        warm = torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda")
        for _ in range(500):  # a card that just woke is slower: about half a second of work
            warm @ warm
        arch = device_arch(torch.device("cuda", index)).name
        self.device = Device(properties.name, arch, MEASURED, copy_bandwidth())
        self._benches: dict[MatmulProblem, _Bench] = {}

    def _bench(self, problem: MatmulProblem) -> _Bench:
        # The last used one comes last
        bench = self._benches.pop(problem, None)
        if bench is None:
            if len(self._benches) == AT_ONCE:
                del self._benches[next(iter(self._benches))]
            bench = _Bench(problem, self._l2)
        self._benches[problem] = bench
        return bench

    def run(self, trials: Sequence[Trial], library: Path | None) -> list[Outcome]:
        """See `Runner.run`."""
        loaded = None if library is None else load_library(library)
        return [self._run(trial, loaded) for trial in trials]

    def _run(self, trial: Trial, library: Library | None) -> Outcome:
        floor = round(self.device.floor_us(trial), 3)
        if library is None:
            return Outcome(None, floor, "the library cannot be loaded")
        problem, M = trial.problem, trial.rows
        bench = self._bench(problem)
        tensors, rows, exact = bench.operands(M)
        x, *more = tensors
        out = x.new_empty((M, problem.out_N), dtype=getattr(torch, problem.out_dtype))
        workspace = torch.empty(max(library.workspace_bytes(M), 1), dtype=torch.uint8, device="cuda")

        def launch(weight: PackedWeight) -> Callable[[], None]:
            arguments = (x, weight.words, weight.scales, weight.global_scale, *more, out, workspace)
            return lambda: library.function(*arguments)

        error = check(launch(bench.ring[0]), out, workspace, rows, exact, problem.out_dtype)
        if error is not None:
            return Outcome(None, floor, error)
        moved = moved_bytes(problem.N, problem.K, M)
        count = max(2, min(len(bench.ring), math.ceil(_COLD * self._l2 / moved)))
        launches = [launch(weight) for weight in bench.ring[:count]]
        time = time_launches(launches, _FINAL_US if trial.round else _SEARCH_US)
        return Outcome(round(time, 3), floor)

    def close(self) -> None:
        """See `Runner.close`."""


def check(
    launch: Callable[[], None],
    out: torch.Tensor,
    workspace: torch.Tensor,
    rows: torch.Tensor,
    exact: torch.Tensor,
    dtype: str,
) -> str | None:
    """Launch twice and return what is wrong with the result, or None.

    Parameters
    ----------
    launch : callable
        Computes ``out``.
    out, workspace : torch.Tensor
        Poisoned with NaNs before each launch.
    rows, exact : torch.Tensor
        Rows of ``out`` that are compared, and their float64 values.
    dtype : str
        Of ``out``.
    """
    results = []
    for _ in range(2):
        out.fill_(torch.nan)
        workspace.fill_(0xFF)
        launch()
        results.append(out.view(torch.uint8).clone())
    if not out.isfinite().all():
        return "wrong: not finite, or elements left unwritten"
    if not torch.equal(*results):
        return "wrong: the same call gives other bits"
    difference = out[rows].double() - exact
    error = float(difference.norm() / exact.norm())
    rounding = float((exact.to(out.dtype).double() - exact).norm() / exact.norm())
    bar = max(ERROR[dtype], _SLACK * rounding)
    if not error <= bar:
        return f"wrong: relative error {error:.3g}, expected at most {bar:.3g}"
    allowed = exact.abs() * (torch.finfo(out.dtype).eps / 2 * 1.01) + _ELEMENT * exact.square().mean().sqrt()
    if not bool((difference.abs() <= allowed).all()):
        return "wrong: an element is off by more than its rounding"
    return None


def make_cuda_runner(index: int) -> CudaRunner:
    """Return the runner of a device."""
    return CudaRunner(index)
