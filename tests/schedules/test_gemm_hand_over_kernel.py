import numpy as np
import pytest
import tvm
from cuda_on_host import on_host

from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.schedules.gemm_hand_over_kernel import zero_flags_kernel
from nvfp4_tvm.schedules.kernel import Launch
from nvfp4_tvm.target import cuda_target


def test_machine_code_of_zeroing():
    module = tvm.IRModule({"main": zero_flags_kernel((132, 8)).with_attr("global_symbol", "main")})
    with cuda_machine_code("sm_90") as log:
        tvm.compile(module, cuda_target("sm_90").target, tir_pipeline="tirx")
    (usage,) = log.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == 0


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
def test_flags_are_zero_on_the_gpu():
    module = tvm.IRModule({"main": zero_flags_kernel((132, 9)).with_attr("global_symbol", "main")})
    zero = tvm.compile(module, cuda_target("sm_90").target, tir_pipeline="tirx")["main"]
    flags = tvm.runtime.tensor(np.full((132, 9), 7, np.uint32), tvm.cuda(0))
    zero(flags)
    assert not flags.numpy().any()


def test_flags_are_zero_on_the_cpu():
    run = on_host(Launch(zero_flags_kernel((132, 9)), ("flags",), "tirx"), cuda_target("sm_90").target)
    (flags,) = run(np.full((132, 9), 7, np.uint32))
    assert not flags.any()
