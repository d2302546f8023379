import numpy as np
import tvm
from relax_modules import Weight, tensor
from tvm.s_tir import dlight as dl

from nvfp4_tvm import layout
from nvfp4_tvm.op.pack import repack
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.gemm_plain import matmul_prim_func
from nvfp4_tvm.schedules.repack import CPURepack
from nvfp4_tvm.target import resolve_target

LLVM = resolve_target("llvm").target


def test_tiles_run_in_parallel_and_the_result_is_the_same():
    N, K = 100, 144
    weight = Weight.random(np.random.default_rng(0), N, K)
    with LLVM:
        scheduled = dl.ApplyDefaultSchedule(CPURepack())(tvm.IRModule({"main": repack(N, K, (N,))}))
    assert scheduled.script().count("T.parallel") == 2
    expected = layout.pack(*weight.arrays())
    arrays = (expected.words, expected.scales, expected.global_scale)
    outputs = [tensor(np.full_like(array, 0x55)) for array in arrays]
    tvm.compile(scheduled, LLVM)["main"](*map(tensor, weight.arrays()), *outputs)
    for found, array in zip(outputs, arrays, strict=True):
        assert found.numpy().tobytes() == array.tobytes()


def test_other_functions_and_targets_are_left_alone():
    assert CPURepack().apply(matmul_prim_func(MatmulProblem(16, 32)), LLVM, False) is None
    assert CPURepack().apply(repack(16, 32), tvm.target.Target("cuda"), False) is None
