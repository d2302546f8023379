import benchmark_modules  # noqa: F401

from benchmarks.model_shapes import MODELS, PARALLEL, model_shapes
from nvfp4_tvm.layout import check_weight


def test_llama_3_8b():
    model = MODELS["Llama 3 8B"]
    assert model.shapes() == [
        (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (4096, 4096), (1024, 4096), (14336, 4096),
    ]  # fmt: skip
    assert model.shapes(4) == [(1536, 4096), (4096, 1024), (7168, 4096), (4096, 3584)]


def test_every_weight_has_kernels_and_whole_models_come_first():
    shapes = model_shapes()
    assert len(set(shapes)) == len(shapes)
    assert shapes[: len(model_shapes((1,)))] == model_shapes((1,))
    for N, K in shapes:
        check_weight(N, K)
    assert set(PARALLEL) == {1, 2, 4, 8}
