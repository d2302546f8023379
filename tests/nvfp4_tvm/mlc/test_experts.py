"""Packed experts compute what their exactly dequantized weights do, in every form in which MLC-LLM routes rows."""

import numpy as np
import pytest
from grouped_problems import Experts, check

from nvfp4_tvm import layout
from nvfp4_tvm.errors import ShapeError
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.grouped import GroupedProblem

E, N, K = 4, 40, 144
#: Shape and dtype of indptr, for M rows, by the form.
FORMS = {
    "sorted": ((E + 1,), "int32"),
    "ends": ((E,), "int64"),
    "selected": ((1, 3), "int32"),
    "shared": ((1, 3), "int32"),
}


def layer(dtype="bfloat16", strategy=None, shards=1, shape=(E, N, K)):
    from mlc_llm.nn.expert import MixtralExperts

    from nvfp4_tvm.mlc.experts import NVFP4Experts

    old = MixtralExperts(shape[0], shape[2], shape[1])
    if strategy is not None:
        old.weight.attrs["shard_strategy"] = strategy
    return NVFP4Experts.from_module(old, "layers.0.experts", shape, dtype, shards)


def exported(module, rows, form, dtype="bfloat16"):
    from tvm.relax.frontend import nn

    spec = {
        "x": nn.spec.Tensor([rows, K], dtype),
        "indptr": nn.spec.Tensor(list(FORMS[form][0]), FORMS[form][1]),
    }
    return module.export_tvm({"forward": {**spec, "$": {"param_mode": "plain", "effect_mode": "none"}}})[0]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_routing(mlc_llm, form):
    import tvm
    from tvm import relax

    selected = form in ("selected", "shared")
    M = MRange(3, 3) if selected else MRange()
    problem = GroupedProblem(N, K, M, experts=E, selected=selected, shared_x=form == "shared")
    rows = {"selected": 3, "shared": 1}.get(form, "rows")
    machine = relax.VirtualMachine(tvm.compile(exported(layer(), rows, form), target="llvm"), tvm.cpu())
    experts = Experts.random(problem)
    for count in (3,) if selected else (1, 3, 50):
        operands, expected = experts.case(count)
        indptr = operands.pop("indptr")
        if form == "ends":
            indptr = indptr[1:].astype(np.int64)
        x, *packed = operands.values()
        values = map(tvm.runtime.tensor, (x, indptr, *packed))
        check(machine["forward"](*values).numpy(), expected)


def test_other_forms_are_refused(mlc_llm, monkeypatch):
    monkeypatch.setitem(FORMS, "wrong", ((E + 1,), "int64"))
    with pytest.raises(
        ShapeError, match=r"layers.0.experts: indptr is int64\[5\], expected int32\[5\], int64\[4\]"
    ):
        exported(layer(), 3, "wrong")


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize(("dim", "segments"), [(1, [32, 32]), (2, None)], ids=["columns", "rows"])
def test_shards_of_the_packing_are_the_packings_of_the_shards(mlc_llm, dim, segments, shards):
    from mlc_llm.support.tensor_parallel import ShardSingleDim

    each = [3, 64, 256]
    whole = [extent * shards if axis == dim else extent for axis, extent in enumerate(each)]
    rng, strategy = np.random.default_rng(0), ShardSingleDim("_shard_e", dim, segments)
    codes = rng.integers(0, 256, (*whole[:2], whole[2] // 2), np.uint8)
    scales = rng.integers(1, 0x7F, (*whole[:2], whole[2] // 16), np.uint8)
    rows = rng.uniform(1, 2, whole[:2]).astype(np.float32)
    pack = [layout.pack(*parts) for parts in zip(codes, scales, rows, strict=True)]
    new, names = layer(strategy=strategy, shards=shards, shape=tuple(each)), set()
    split = [strategy.shard(array, shards) for array in (codes, scales)]
    split.append(strategy.shard(rows, shards) if dim == 1 else [rows] * shards)
    for field, parameter in new.packed().items():
        together = np.stack([getattr(one, field) for one in pack])
        own = parameter.attrs.get("shard_strategy")
        parts = [together] * shards if own is None else own.shard(together, shards)
        names.add(None if own is None else own.name)
        for shard, found in enumerate(parts):
            wanted = [layout.pack(*one) for one in zip(*(part[shard] for part in split), strict=True)]
            assert found.shape == tuple(parameter.shape)
            np.testing.assert_array_equal(found, np.stack([getattr(one, field) for one in wanted]))
    assert names == {"_shard_e_words", "_shard_e_scales", "_shard_e_global_scale" if dim == 1 else None}


def test_what_does_not_split_into_tiles_is_refused(mlc_llm):
    from mlc_llm.support.tensor_parallel import ShardSingleDim

    with pytest.raises(ShapeError, match=r"layer layers.0.experts: K of 384 does not split .*expected .* 1"):
        layer(strategy=ShardSingleDim("_shard_e", 2, None), shards=2, shape=(3, 64, 192))
