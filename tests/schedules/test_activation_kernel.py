import numpy as np
import pytest
import tvm
from cuda_on_host import on_host

from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.schedules.activation_kernel import tile_activations_kernel
from nvfp4_tvm.schedules.activation_layout import tile_activations
from nvfp4_tvm.schedules.kernel import Launch
from nvfp4_tvm.target import cuda_target


@pytest.mark.parametrize("flags", [None, (132, 8)])
def test_machine_code(flags):
    function = tile_activations_kernel(2880, "bfloat16", 48, flags).with_attr("global_symbol", "main")
    assert len(function.params) == (2 if flags is None else 3)
    with cuda_machine_code("sm_90") as log:
        tvm.compile(tvm.IRModule({"main": function}), cuda_target("sm_90").target, tir_pipeline="tirx")
    (usage,) = log.usage.values()
    assert usage.spill_stores == usage.spill_loads == usage.stack == 0


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("K", "tokens"), [(16, 32), (48, 128), (2880, 48), (4096, 256)])
def test_tiles_on_the_gpu(K, tokens):
    function = tile_activations_kernel(K, "float16", tokens, (3, 50)).with_attr("global_symbol", "main")
    target = cuda_target("sm_90").target
    tile_x = tvm.compile(tvm.IRModule({"main": function}), target, tir_pipeline="tirx")["main"]
    rng = np.random.default_rng(K)
    for M in (1, 31, 48, 300):
        # NaN right behind the last element: neither read nor summed
        memory = np.full(M * K + 64, np.nan, np.float16)
        memory[: M * K] = rng.standard_normal(M * K)
        expected = tile_activations(memory[: M * K].reshape(M, K), tokens)
        whole = tvm.runtime.tensor(memory, tvm.cuda(0))
        x = whole._create_view((M, K))
        tiles = tvm.runtime.tensor(np.full(expected.shape, 0xFFFFFFFF, np.uint32), tvm.cuda(0))
        flags = tvm.runtime.tensor(np.ones((3, 50), np.uint32), tvm.cuda(0))
        tile_x(x, tiles, flags)
        assert (tiles.numpy() == expected).all()
        assert not flags.numpy().any()


@pytest.mark.parametrize(("K", "tokens"), [(16, 32), (48, 128), (272, 48)])
def test_tiles_on_the_cpu(K, tokens):
    kernel = tile_activations_kernel(K, "float16", tokens, (3, 50))
    run = on_host(Launch(kernel, ("x", "x_tiles", "flags"), "tirx"), cuda_target("sm_90").target)
    for M in (1, 31, 48, 100):
        x = np.random.default_rng(M).standard_normal((M, K)).astype(np.float16)
        expected = tile_activations(x, tokens)
        _, tiles, flags = run(x, np.full(expected.shape, 0xFFFFFFFF, np.uint32), np.ones((3, 50), np.uint32))
        assert (tiles == expected).all() and not flags.any()
