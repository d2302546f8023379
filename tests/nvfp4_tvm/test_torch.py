import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from nvfp4_tvm import layout
from nvfp4_tvm.checkpoint.base import NVFP4Tensor
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.packing import pack as pack_parts
from nvfp4_tvm.passes.fold_weights import TRANSFORM
from nvfp4_tvm.passes.pipeline import pipeline, weight_passes
from nvfp4_tvm.passes.transform_params import PackedOutput, read_transform, split_transform
from nvfp4_tvm.target import resolve_target
from nvfp4_tvm.torch import (
    CompiledModule,
    Linear,
    compile_exported,
    decode,
    from_exported,
    linear,
    pack,
    replace_linears,
)

# The tests share compiled programs.
pytestmark = pytest.mark.xdist_group("torch")

#: Relative Frobenius error against eager: the order of the sums, and the roundings that it tips.
AGREEMENT = {torch.float32: 2e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}
DTYPES = list(AGREEMENT)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def random_tensor(rng: np.random.Generator, N: int, K: int) -> NVFP4Tensor:
    codes = rng.integers(0, 256, (N, K // 2), np.uint8)
    scales = rng.integers(0, 0x7F, (N, K // 16), np.uint8)
    return NVFP4Tensor("w", codes, scales, np.float32(rng.uniform(1e-5, 1e-4)))


def random_linear(N: int, K: int, bias: bool = False, seed: int = 0, dtype=torch.float32) -> Linear:
    rng = np.random.default_rng(seed)
    vector = torch.tensor(rng.standard_normal(N)).to(dtype) if bias else None
    return Linear.from_tensor(random_tensor(rng, N, K), vector)


class Chain(nn.Module):
    """A layer with a bias and an odd N, a layer without that is used twice, and a plain one."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.shared = nn.Linear(48, 48, bias=False)
        self.again = self.shared
        self.plain = nn.Linear(48, 48)
        self.last = nn.Linear(48, 100)
        self.to(dtype)
        replace_linears(self, lambda name, _: name != "plain")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.again(self.shared(x)))
        # 16-bit matmuls of TVM accumulate in 16 bits, unlike ours
        x = nn.functional.linear(x.float(), self.plain.weight.float(), self.plain.bias.float()).to(x.dtype)
        return self.last(x)


@cache
def chain(dtype: torch.dtype) -> tuple[Chain, torch.export.ExportedProgram]:
    torch.manual_seed(5)
    model = Chain(dtype).eval()
    batch = torch.export.Dim("batch")
    return model, torch.export.export(model, (torch.zeros(2, 48, dtype=dtype),), dynamic_shapes=({0: batch},))


@cache
def compiled_chain(dtype: torch.dtype) -> CompiledModule:
    return compile_exported(chain(dtype)[1])


def constants(mod: tvm.IRModule) -> list[tvm.ir.GenericConst]:
    """All constants of the Relax functions; one that is used twice counts once."""
    found: list[tvm.ir.GenericConst] = []

    def visit(expr: tvm.relax.Expr) -> None:
        if (
            isinstance(expr, tvm.ir.GenericConst)
            and isinstance(expr.value, tvm.runtime.Tensor)
            and not any(map(expr.same_as, found))
        ):
            found.append(expr)

    for _, function in mod.functions_items():
        if isinstance(function, tvm.relax.Function):
            tvm.relax.analysis.post_order_visit(function, visit)
    return found


def test_import_maps_each_weight_to_one_pack():
    mod = from_exported(chain(torch.float32)[1])
    text = mod.script(show_meta=False)
    # three uses of two weights
    assert text.count("nvfp4.matmul") == 3 and text.count("nvfp4.pack") == 2
    assert "relax.nn.linear" not in text and "dequantize" not in text


def test_atens_linear_of_the_same_name_is_left_to_tvm():
    _, program = chain(torch.float32)
    mod = from_exported(program, run_ep_decomposition=False)
    assert mod.script().count("nvfp4.matmul") == 3 and mod.script().count("R.matmul") == 1

    seen = []

    def mine(node, importer):
        seen.append(node)
        return importer.create_convert_map()["linear.default"](node)

    from_exported(program, run_ep_decomposition=False, custom_convert_map={"linear.default": mine})
    assert [node.target for node in seen] == [torch.ops.aten.linear.default]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("M", [1, 3, 17, 33])
def test_compiled_agrees_with_eager(dtype, M):
    model, _ = chain(dtype)
    x = torch.randn(M, 48, dtype=dtype)
    got = compiled_chain(dtype)(x)
    assert got.dtype == dtype and got.shape == (M, 100)
    assert relative(got, model(x).detach()) < AGREEMENT[dtype]


def test_compiled_takes_views_and_refuses_what_does_not_fit():
    model, _ = chain(torch.float32)
    run = compiled_chain(torch.float32)
    wide = torch.randn(3, 1 + 48 + 2)
    assert relative(run(wide[:, 1:-2]), model(wide[:, 1:-2]).detach()) < AGREEMENT[torch.float32]
    flat = torch.randn(1 + 3 * 48)[1:].view(3, 48)  # contiguous and not aligned
    assert relative(run(flat), model(flat).detach()) < AGREEMENT[torch.float32]
    for inputs, message in [
        ((), "found 0 inputs, expected 1"),
        (
            (torch.zeros(3, 48).half(),),
            r"input 0 is float16\[3, 48\] on cpu, expected float32\[\w+, 48\] on cpu",
        ),
        ((torch.zeros(3, 32),), r"input 0 is float32\[3, 32\]"),
        ((torch.zeros(48),), r"input 0 is float32\[48\]"),
        ((torch.zeros(0, 48),), r"input 0 is float32\[0, 48\], expected no empty extent"),
        ((torch.zeros(3, 48, device="meta"),), "on meta, expected"),
    ]:
        with pytest.raises(ShapeError, match=message):
            run(*inputs)


def test_no_unpacked_copy_of_a_weight_remains(tmp_path):
    model, program = chain(torch.float32)
    target = resolve_target("llvm").target
    for passes in (tvm.transform.Sequential(weight_passes()), pipeline(target)):
        found = constants(passes(from_exported(program)))
        for constant in found:
            shape, dtype = tuple(map(int, constant.ty.shape)), str(constant.ty.dtype)
            # The plain layer keeps its float weight; of the others there are words, scales and row scales.
            assert dtype != "uint8"
            assert dtype == "uint32" or len(shape) == 1 or shape == (48, 48), (shape, dtype)
        words = [c.value.numpy() for c in found if len(c.ty.shape) == 5]
        for layer in (model.shared, model.last):
            packed = layout.pack(*(tensor.numpy() for tensor in layer.buffers()))
            assert sum(np.array_equal(packed.words, w) for w in words if w.shape == packed.words.shape) == 1
        assert sum(len(c.ty.shape) == 2 for c in found) == 1

    path = tmp_path / "chain.so"
    compiled_chain(torch.float32).export_library(path)
    library = path.read_bytes()
    for layer in (model.shared, model.last):
        packed = layout.pack(*(tensor.numpy() for tensor in layer.buffers()))
        assert library.count(packed.words.tobytes()) == 1
        assert layer.codes.numpy().tobytes() not in library
        assert layer.dequantize().numpy().tobytes() not in library
        assert decode(layer.codes, layer.scales).numpy().tobytes() not in library
    main = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())["main"]
    x = torch.randn(4, 48)
    got = torch.from_dlpack(main(tvm.runtime.from_dlpack(x)))
    assert relative(got, model(x).detach()) < AGREEMENT[torch.float32]


def test_weights_as_parameters_are_packed_by_the_transform():
    model, program = chain(torch.float32)
    signature = str(program.graph_signature)
    mod = from_exported(program, keep_params_as_input=True, unwrap_unit_return_tuple=True)
    assert str(program.graph_signature) == signature  # the caller's program is untouched
    mod, params = tvm.relax.frontend.detach_params(mod)
    names = [param.name for param in mod["main"].params][int(mod["main"].attrs["num_input"]) :]
    state = model.state_dict()
    assert set(names) <= set(state) and len(names) == len(params["main"]) == 9
    for name, param in zip(names, params["main"], strict=True):
        assert np.array_equal(param.numpy(), state[name].numpy())
    assert not constants(mod)

    mod, transform = split_transform(tvm.transform.Sequential(weight_passes())(mod))
    assert transform is not None and TRANSFORM in [gvar.name_hint for gvar in transform.get_global_vars()]
    order = [param.name for param in mod["main"].params[1:]]
    assert {"last.packed.words", "last.packed.scales", "last.packed.global_scale", "last.bias"} <= set(order)
    assert not any(name.endswith(".codes") for name in order)
    target, packed = resolve_target("llvm").target, []
    for output in read_transform(transform):
        if isinstance(output, PackedOutput):
            parts = ([params["main"][i].numpy()] for i in output.operands)
            weight = pack_parts(*parts, order=output.order)
            packed += [weight.words, weight.scales, weight.global_scale]
        else:
            packed.append(params["main"][output.operand].numpy())
    assert len(packed) == len(order)
    executable = tvm.relax.build(mod, target, relax_pipeline=pipeline(target))
    main = tvm.relax.VirtualMachine(executable, tvm.cpu())["main"]
    x = torch.randn(5, 48)
    got = torch.from_dlpack(main(tvm.runtime.from_dlpack(x), *map(tvm.runtime.tensor, packed)))
    assert relative(got, model(x).detach()) < AGREEMENT[torch.float32]


def test_operands_by_keyword():
    layer = random_linear(16, 32, bias=True)

    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = {"codes": self.layer.codes, "scales": self.layer.scales}
            bias = self.layer.bias
            return linear(bias=bias, global_scale=self.layer.global_scale, x=x, **weight)

    x = torch.randn(2, 32)
    got = compile_exported(Keywords(), (x,))(x)
    assert relative(got, layer(x)) < AGREEMENT[torch.float32]
    program = torch.export.export(Keywords(), (x,))
    names = [param.name for param in from_exported(program, keep_params_as_input=True)["main"].params]
    assert sorted(names[1:]) == [f"layer.{field}" for field in ("bias", "codes", "global_scale", "scales")]


def test_several_symbolic_axes_scale_per_row_and_tuples():
    rng = np.random.default_rng(8)
    layer = Linear(32, 20, bias=False, scale_per_row=True)
    tensor = random_tensor(rng, 20, 32)
    scales = torch.tensor(rng.uniform(1e-4, 1, 20).astype(np.float32))
    state = {
        "codes": torch.tensor(tensor.codes),
        "scales": torch.tensor(tensor.scales),
        "global_scale": scales,
    }
    layer.load_state_dict(state)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layer(x), y + y

    model, dims = Two(), {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    run = compile_exported(model, (torch.randn(2, 3, 32), torch.randn(4)), dynamic_shapes=(dims, None))
    for shape in ((1, 1), (2, 5), (5, 1)):
        x, y = torch.randn(*shape, 32), torch.randn(4)
        for got, expected in zip(run(x, y), model(x, y), strict=True):
            assert got.shape == expected.shape and relative(got, expected) < AGREEMENT[torch.float32]


@pytest.mark.parametrize("activation", [None, "silu_mul"])
@pytest.mark.parametrize("residual", [False, True])
def test_packed_weights(activation, residual):
    layer = random_linear(32, 48, bias=True)
    packed = pack(*layer.buffers())

    class Packed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            more = x[..., : 32 if activation is None else 16] if residual else None
            return linear(x, packed, bias=layer.bias, residual=more, activation=activation)

    model, x = Packed(), torch.randn(3, 48)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    run = compile_exported(program)
    for M in (1, 5):
        x = torch.randn(M, 48)
        assert relative(run(x), model(x)) < AGREEMENT[torch.float32]


def test_compile_exported_refuses_contradictions():
    model, program = chain(torch.float32)
    with pytest.raises(NVFP4Error, match="needs example inputs"):
        compile_exported(model)
    with pytest.raises(NVFP4Error, match="leave out args"):
        compile_exported(program, (torch.zeros(2, 48),))
    with pytest.raises(NVFP4Error, match="not supported"):
        compile_exported(program, target="vulkan")


def test_missing_torch_is_named():
    code = "import sys; sys.modules['torch'] = None; import nvfp4_tvm.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: nvfp4_tvm.torch needs PyTorch" in done.stderr
    assert "pip install 'nvfp4-tvm[torch]'" in done.stderr
