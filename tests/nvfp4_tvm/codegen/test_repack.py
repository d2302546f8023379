import numpy as np
import pytest
import tvm
from relax_modules import Weight

from nvfp4_tvm import layout
from nvfp4_tvm.codegen.repack import build_repack
from nvfp4_tvm.errors import ShapeError, TargetError
from nvfp4_tvm.target import resolve_target


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("K", [256, 272])
def test_built_once_without_spills(arch, K):
    target = resolve_target(f"cuda:{arch}").target
    built = build_repack(24, K, 1, target)
    assert built is build_repack(24, K, 1, target)
    (usage,) = built.log.usage.values()
    assert usage.spill_stores == usage.spill_loads == 0


def test_refusals():
    with pytest.raises(ShapeError):
        build_repack(24, 40, 1, resolve_target("cuda:sm_89").target)
    with pytest.raises(TargetError, match="has no kernel nvfp4_repack_24x48_1"):
        build_repack(24, 48, 1, resolve_target("llvm").target)


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("N", "K"), [(1, 16), (24, 48), (100, 2880), (33, 272), (16, 4096)])
@pytest.mark.parametrize("per_row", [True, False])
def test_bytes_on_the_gpu(N, K, per_row):
    """Byte for byte what NumPy makes, over memory that held something else."""
    weight = Weight.random(np.random.default_rng(N), N, K)
    rows = weight.rows if per_row else weight.rows[:1]
    expected = layout.pack(weight.codes, weight.scales, rows)
    gpu = tvm.cuda(0)
    arrays = [expected.words, expected.scales, expected.global_scale]
    outputs = [tvm.runtime.tensor(np.full_like(array, 0x55), gpu) for array in arrays]
    inputs = [tvm.runtime.tensor(array, gpu) for array in (weight.codes, weight.scales, rows)]
    build_repack(N, K, rows.size, resolve_target("auto").target).function(*inputs, *outputs)
    for found, array in zip(outputs, arrays, strict=True):
        assert found.numpy().tobytes() == array.tobytes()
