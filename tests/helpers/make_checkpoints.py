"""Genuine checkpoints of tiny random models, written on CPU by the libraries that own the formats.

Every function writes a folder and returns its `Path`. Hidden size 128 (or what `config` says), 2 layers,
vocabulary 512: a folder is under 1 MB and takes about a second.
"""

import contextlib
import io
import warnings
from pathlib import Path

import torch
import transformers

ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    # architectures that MLC-LLM builds and this package's own decoder does not
    "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "phi3": (transformers.Phi3Config, transformers.Phi3ForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def gemma3_rope(full):
    """The RoPE of a Gemma 3 whose layers with full attention have the base ``full``, and sliding ones 10,000."""
    bases = {"full_attention": full, "sliding_attention": 10_000}
    return {kind: {"rope_type": "default", "rope_theta": float(base)} for kind, base in bases.items()}


# What sets an architecture apart from the tiny Llama. Every sixth layer of Gemma 3 has full attention; MLC-LLM
# allocates for a model that has such a layer. RoPE has one base here: MLC-LLM's prompts know no second one, and
# its sliding layers know this one only (docs/mlc.md).
OWN = {
    "qwen2": {"head_dim": None},
    "gemma3_text": {
        "query_pre_attn_scalar": 32, "num_hidden_layers": 6, "rope_parameters": gemma3_rope(10_000),
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 192,
        "norm_topk_prob": True,
    },
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 256},
}  # fmt: skip


def make_model(arch="llama", *, tie=False, seed=0, dtype=torch.bfloat16, config=None):
    """Return a random model whose weights differ in magnitude from matrix to matrix, as trained ones do."""
    config_class, model_class = ARCHITECTURES[arch]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {
            **SMALL,
            "tie_word_embeddings": tie,
            "architectures": [model_class.__name__],
            **OWN.get(arch, {}),
            **(config or {}),
        }
        settings = {name: value for name, value in settings.items() if value is not None}
        model = model_class(config_class(**settings)).eval()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() == 1:  # norms and biases, which start at one and zero
                    p.add_(torch.randn_like(p) * 0.1)
                elif "embed_tokens" not in name:
                    p.mul_(torch.empty(()).uniform_(0.5, 4.0))
    return model.to(dtype)


def make_plain(
    folder, *, arch="llama", tie=False, seed=0, dtype=torch.bfloat16, config=None, max_shard_size="5GB"
):
    """Write an unquantized checkpoint. `dtype` is a torch dtype or its name."""
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype)
    model = make_model(arch, tie=tie, seed=seed, dtype=dtype, config=config)
    with _quietly():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    return Path(folder)


def make_modelopt(
    folder, *, arch="llama", tie=False, exclude=(), seed=0, config=None, quant_cfg="NVFP4_DEFAULT_CFG"
):
    """Write a checkpoint with ModelOpt's ``mtq.quantize`` and ``export_hf_checkpoint``.

    Parameters
    ----------
    exclude : sequence of str
        Wildcards of module names to leave unquantized besides ModelOpt's defaults, such as ``"*layers.0*"``.
    quant_cfg : str
        The name of a configuration of ``modelopt.torch.quantization``.
    """
    with _quietly():
        import copy

        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint

        model = make_model(arch, tie=tie, seed=seed, config=config)
        cfg = copy.deepcopy(getattr(mtq, quant_cfg))
        for pattern in exclude:
            for quantizer in ("weight_quantizer", "input_quantizer"):
                cfg["quant_cfg"].append({"quantizer_name": f"{pattern}{quantizer}", "enable": False})

        def calibrate(m):
            with torch.random.fork_rng():
                torch.manual_seed(seed + 1)
                m(torch.randint(0, model.config.vocab_size, (2, 32)))

        model = mtq.quantize(model, cfg, calibrate)
        export_hf_checkpoint(model, export_dir=str(folder))
    return Path(folder)


def make_compressed_tensors(
    folder, *, arch="qwen3", tie=False, ignore=("lm_head",), targets=("Linear",), seed=0, config=None,
    scheme="NVFP4A16", max_shard_size="5GB",
):  # fmt: skip
    """Write a checkpoint with compressed-tensors' ``ModelCompressor``.

    Global scales are each tensor's own, so they differ between the parts of a fused layer.

    Parameters
    ----------
    ignore, targets : sequence of str
        As in the library's configuration: class names, module names or ``re:`` patterns.
    scheme : str
        A preset of the library: "NVFP4A16" (weights alone) or "NVFP4" (with ``input_global_scale``).
    """
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    with _quietly():
        model = make_model(arch, tie=tie, seed=seed, config=config)
        qc = QuantizationConfig(
            config_groups={"group_0": preset_name_to_scheme(scheme, list(targets))},
            ignore=list(ignore), quantization_status="frozen", format="nvfp4-pack-quantized",
        )  # fmt: skip
        apply_quantization_config(model, qc)
        for module in model.modules():
            if hasattr(module, "weight_global_scale"):
                w = module.weight.data.float()
                g = generate_gparam(w.min(), w.max())
                blocks = w.reshape(w.shape[0], -1, 16)
                args = module.quantization_scheme.weights
                scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=g)
                module.weight_global_scale.data = g
                module.weight_scale.data = scale.to(module.weight_scale.dtype)
            if hasattr(module, "input_global_scale"):
                module.input_global_scale.data = torch.tensor([100.0])
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        compressor.update_config(str(folder))
    return Path(folder)


@contextlib.contextmanager
def _quietly():
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
