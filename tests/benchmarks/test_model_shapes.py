import benchmark_modules  # noqa: F401
import pytest

from benchmarks.model_shapes import MODELS, PARALLEL, main, model_shapes, part, untuned
from nvfp4_tvm.layout import check_weight
from nvfp4_tvm.schedules.records import Database
from nvfp4_tvm.schedules.tuned import shipped


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


def test_untuned_shapes_have_no_measured_records(monkeypatch):
    assert untuned("sm_90") == []
    assert untuned("sm_89") == model_shapes()  # its records are predicted
    some = Database(tuple(record for record in shipped("sm_90").records if record.N != 4096))
    monkeypatch.setattr("benchmarks.model_shapes.shipped", lambda arch: some)
    assert untuned("sm_90") == [(N, K) for N, K in model_shapes() if N == 4096]


def test_parts_are_all_there_is(monkeypatch, capsys):
    shapes = model_shapes()
    parts = [part(shapes, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(shape for some in parts for shape in some) == sorted(shapes)
    assert abs(len(parts[0]) - len(parts[2])) <= 1
    monkeypatch.setattr("sys.argv", ["model_shapes", "--part", "2/3"])
    main()
    assert capsys.readouterr().out.strip() == ",".join(f"{N}x{K}" for N, K in parts[1])


@pytest.mark.parametrize("which", ["0/2", "3/2", "1", "a/b", "1/0", ""])
def test_there_is_no_such_part(which):
    with pytest.raises(ValueError, match="expected such as 1/2"):
        part([(16, 16)], which)
