import numpy as np
import pytest
import tvm
from relax_modules import Weight

from nvfp4_tvm import layout
from nvfp4_tvm.codegen import sass
from nvfp4_tvm.codegen.repack import build_repack
from nvfp4_tvm.errors import ShapeError, TargetError
from nvfp4_tvm.schedules.repack_kernel import CONFIGS
from nvfp4_tvm.target import resolve_target


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("K", [256, 288, 272])
def test_built_once_without_spills(arch, K):
    target = resolve_target(f"cuda:{arch}").target
    built = build_repack(24, K, target)
    assert built is build_repack(72, 3 * K, target)
    (usage,) = built.log.usage.values()
    assert usage.registers <= 64  # four blocks of 256 threads on a multiprocessor
    assert usage.spill_stores == usage.spill_loads == 0


def test_refusals():
    with pytest.raises(ShapeError):
        build_repack(24, 40, resolve_target("cuda:sm_89").target)
    with pytest.raises(TargetError, match="has no kernel nvfp4_repack_16_4_4_256"):
        build_repack(24, 48, resolve_target("llvm").target)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_memory_is_moved_in_vectors(arch):
    """Four loads and stores of 16 bytes a thread for codes, two and one for scales, and little beside."""
    code = build_repack(16, 128, resolve_target(f"cuda:{arch}").target).log.modules[0]
    counts = sass.count_instructions(sass.sass(code.fatbin, arch))
    loads = {name: count for name, count in counts.items() if name.startswith("LDG")}
    stores = {name: count for name, count in counts.items() if name.startswith("STG")}
    assert loads == {"LDG.E.128.CONSTANT": 4, "LDG.E.64.CONSTANT": 2, "LDG.E.CONSTANT": 1}
    assert stores == {"STG.E.128": 5, "STG.E": 1}
    # 16 words of 20 instructions each; addresses, bounds and scales are the rest
    assert sum(counts.values()) < 2 * 16 * 20


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("N", "K"), [(1, 16), (24, 48), (100, 2880), (33, 272), (16, 4096), (777, 5376)])
@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("config", CONFIGS)
def test_bytes_on_the_gpu(N, K, per_row, config):
    """Byte for byte what NumPy makes, over memory that held something else."""
    weight = Weight.random(np.random.default_rng(N), N, K)
    rows = weight.rows if per_row else weight.rows[:1]
    expected = layout.pack(weight.codes, weight.scales, rows)
    gpu = tvm.cuda(0)
    arrays = [expected.words, expected.scales, expected.global_scale]
    outputs = [tvm.runtime.tensor(np.full_like(array, 0x55), gpu) for array in arrays]
    inputs = [tvm.runtime.tensor(array, gpu) for array in (weight.codes, weight.scales, rows)]
    build_repack(N, K, resolve_target("auto").target, config).function(*inputs, *outputs)
    for found, array in zip(outputs, arrays, strict=True):
        assert found.numpy().tobytes() == array.tobytes()
