"""A model as MLC-LLM's export, and a pipeline with the phases of MLC's that kernels have to get through."""

import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.s_tir import dlight as dl

from nvfp4_tvm.mlc.linear import NVFP4Linear

#: Small: kernels for one or two rows compile fast.
BOUNDS = {"seq_len": 2, "batch_size": 2, "total_seq_len": 512}
CAPTURED = {"batch_decode": ["batch_size"], "batch_verify": ["batch_size", "seq_len"]}


class Layer(nn.Module):
    """A norm, a layer with a bias, an activation, a layer with a residual."""

    def __init__(self, hidden, inner, dtype):
        self.norm = nn.RMSNorm(hidden, -1, 1e-5, bias=False, dtype=dtype)
        self.up = NVFP4Linear("up", inner, hidden, dtype, bias=True)
        self.down = NVFP4Linear("down", hidden, inner, dtype)

    def forward(self, x):
        return self.down(nn.op.silu(self.up(self.norm(x)))) + x


class Model(nn.Module):
    """Layers and a head whose logits are cast to float32, as MLC's models do."""

    def __init__(self, hidden=256, inner=384, vocab=144, layers=2, dtype="bfloat16"):
        self.layers = nn.ModuleList([Layer(hidden, inner, dtype) for _ in range(layers)])
        self.head = NVFP4Linear("head", vocab, hidden, dtype)
        self.hidden, self.dtype = hidden, dtype

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)
        return logits if logits.dtype == "float32" else logits.astype("float32")

    prefill = decode = batch_decode = batch_verify = forward

    def export(self):
        """Return the module and the parameters' names."""
        shapes = {
            "prefill": [1, "seq_len", self.hidden],
            "decode": [1, 1, self.hidden],
            "batch_decode": ["batch_size", 1, self.hidden],
            "batch_verify": [1, "seq_len", self.hidden],
        }
        modes = {"param_mode": "packed", "effect_mode": "none"}
        raw = {name: {"x": nn.spec.Tensor(shape, self.dtype), "$": modes} for name, shape in shapes.items()}
        mod, params, _ = self.export_tvm(spec=nn.spec.ModuleSpec.from_raw(raw, self), allow_extern=True)
        return mod, [name for name, _ in params]


def mlc_pipeline(target, variable_bounds=None, metadata=None, record=None):
    """Return a pass with MLC's phases (mlc_llm/compiler_pass/pipeline.py); ``record`` gets modules between."""
    record = [] if record is None else record
    transform = relax.transform

    @tvm.transform.module_pass(opt_level=0, name="keep")
    def keep(mod, _ctx):
        record.append(mod)
        return mod

    @tvm.transform.module_pass(opt_level=0, name="hints")
    def hints(mod, _ctx):
        for gvar, function in mod.functions_items():
            if isinstance(function, relax.Function):
                function = function.with_attr("tir_var_upper_bound", variable_bounds or {})
                function = function.with_attr("relax.memory_plan_dynamic_func_output", True)
                if gvar.name_hint in CAPTURED:
                    symbols = CAPTURED[gvar.name_hint]
                    function = function.with_attr("relax.rewrite_cuda_graph.capture_symbolic_vars", symbols)
                mod[gvar] = function
        return mod

    @tvm.transform.module_pass(opt_level=0, name="mlc_llm")
    def run(mod, _ctx):
        gpu = target.kind.name != "llvm"
        rules = [
            dl.gpu.Matmul(),
            dl.gpu.GEMV(),
            dl.gpu.Reduction(),
            dl.gpu.GeneralReduction(),
            dl.gpu.Fallback(),
        ]
        return tvm.transform.Sequential(
            [
                hints,
                tvm.tirx.transform.BindTarget(tvm.target.Target.current(allow_none=False)),
                transform.LegalizeOps(),
                transform.AnnotateTIROpPattern(),
                transform.FoldConstant(),
                transform.FuseOps(),
                transform.FuseTIR(),
                transform.DeadCodeElimination(),
                dl.ApplyDefaultSchedule(*(rules if gpu else [dl.cpu.GEMV()])),
                *([] if gpu else [tvm.tirx.transform.ForceNarrowIndexToInt32()]),
                transform.RewriteDataflowReshape(),
                transform.ToNonDataflow(),
                transform.RemovePurityChecking(),
                transform.CallTIRRewrite(),
                transform.StaticPlanBlockMemory(),
                keep,
                transform.RewriteCUDAGraph(),
                keep,
                transform.LowerAllocTensor(),
                transform.KillAfterLastUse(),
                transform.LowerRuntimeBuiltin(),
                transform.VMShapeLower(),
                transform.AttachGlobalSymbol(),
            ]
        )(mod)

    return run
