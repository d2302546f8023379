"""Structure of scheduled GEMMs, before and after lowering, and the machine code of a few."""

import re

import pytest
import tvm
from mma_problems import Case
from tvm import s_tir

from nvfp4_tvm.arch import arch_of_capability
from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_mma_compute import gemm_mma
from nvfp4_tvm.schedules.gemm_mma_config import MmaConfig
from nvfp4_tvm.schedules.gemm_mma_schedule import schedule_gemm_mma
from nvfp4_tvm.schedules.lowering import BARRIER_BEFORE, MMA_PIPELINE, mma_pipeline
from nvfp4_tvm.target import cuda_target

PLAIN = MmaConfig(64, 64, 64, 32, stages=2)
PARTS = MmaConfig(32, 64, 32, 32, k_warps=2, stages=4)
SHORT = MmaConfig(64, 64, 32, 32, block_k=64, stages=3)
GROUPS_OF_32 = [
    MmaConfig(32, 64, 32, 32, block_k=64, stages=3),
    MmaConfig(32, 64, 32, 32, block_k=128, stages=2),
    MmaConfig(32, 64, 32, 32, block_k=256, stages=2),
]


def problem_of(N=256, K=1024, **fields):
    return MatmulProblem(N, K, MRange(17), **{**{"x_dtype": "bfloat16", "out_dtype": "bfloat16"}, **fields})


def lowered(sch, arch="sm_89"):
    bound = tvm.tirx.transform.BindTarget(cuda_target(arch).target)(sch.mod)
    return mma_pipeline()[0](bound).script()


def machine_code(problem, config, arch, group_size=16):
    """Resource usage and counts of SASS instructions of one launch."""
    sch = schedule_gemm_mma(problem, config, group_size)
    with cuda_machine_code(arch, ptx=False) as log:
        tvm.compile(sch.mod, cuda_target(arch).target, tir_pipeline=MMA_PIPELINE)
    (module,) = log.modules
    (usage,) = module.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == 0
    return usage, count_instructions(sass(module.fatbin, arch))


def test_before_and_after():
    problem = problem_of()
    before = s_tir.Schedule(gemm_mma(problem, PARTS)).mod.script()
    after = schedule_gemm_mma(problem, PARTS).mod.script()
    for name in ("nvfp4_mma_bf16", "nvfp4_decode_bf16x2", "nvfp4_scale_pair_bf16x2", "nvfp4_load"):
        assert name not in before and name in after, name
    assert "thread_binding" not in before
    for thread, extent in (("threadIdx.x", 32), ("threadIdx.y", 2), ("threadIdx.z", 2), ("blockIdx.y", 4)):
        assert re.search(rf'thread_binding\((T.int32\()?{extent}\)?, thread="{thread}"', after), thread
    assert "software_pipeline" not in before and BARRIER_BEFORE in after
    assert '"software_pipeline_async_stages": [0]' in after
    assert '"software_pipeline_stage": [0, 3, 3, 3, 3]' in after


@pytest.mark.parametrize("config", [PLAIN, PARTS, SHORT], ids=lambda config: config.name)
def test_lowered(config):
    text = lowered(schedule_gemm_mma(problem_of(), config))
    (size,) = re.findall(r'alloc_buffer\(\((\d+),\), "uint8", scope="shared.dyn"', text)
    assert int(size) == config.shared_bytes()
    # All copies are asynchronous: no store to shared memory but the sums of the parts
    assert "nvfp4_cp_async_16" in text and "async_scope" not in text
    loop = text[text.index("for v in") :]
    # The pipeline's loop has one barrier, right after the wait, and the next copies come after both
    wait, barrier, copy = (loop.index(name) for name in ("async_wait", "tvm_storage_sync", "nvfp4_cp_async"))
    assert wait < barrier < copy


def test_launch_bounds():
    text = lowered(schedule_gemm_mma(problem_of(), PARTS))
    assert "M" in text
    extents = dict(re.findall(r'launch_thread\("(threadIdx\.\w)", (\d+)\)', text))
    assert extents == {"threadIdx.x": "32", "threadIdx.y": "2", "threadIdx.z": "2"}


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
def test_machine_code(arch):
    usage, counts = machine_code(problem_of(), PARTS, arch)
    families = {name.split(".")[0] for name in counts}
    assert {"HMMA", "LDGSTS", "MOVM"} <= families
    assert any(name.startswith("LDGSTS") and name.endswith("128") for name in counts)
    assert counts["LDS.128"] >= PARTS.tiles_m
    assert not {"LDL", "STL"} & families
    assert usage.static_shared == 0


def test_machine_code_of_the_fp16_gate():
    problem = problem_of(x_dtype="float16", out_dtype="float16", activation="silu_mul", bias=True)
    _, counts = machine_code(problem, SHORT, "sm_89")
    assert any(name.startswith("HMMA.16816.F32") for name in counts)


@pytest.mark.parametrize("config", GROUPS_OF_32, ids=lambda config: config.name)
def test_groups_of_32(config):
    machine_code(problem_of(), config, "sm_89", group_size=32)


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("config", GROUPS_OF_32, ids=lambda config: config.name)
def test_groups_of_32_on_the_gpu(config):
    device = tvm.cuda(0)
    target = cuda_target(arch_of_capability(device.compute_version).name).target
    problem = problem_of(100, 2880)
    sch = schedule_gemm_mma(problem, config, group_size=32)
    function = tvm.compile(sch.mod, target, tir_pipeline=MMA_PIPELINE)["main"]
    for M in (17, 100, 300):
        case = Case.random(problem, M, group_size=32)
        out = tvm.runtime.tensor(case.empty(problem), device)
        function(*(tvm.runtime.tensor(array, device) for array in case.operands.values()), out)
        case.check(out.numpy())
