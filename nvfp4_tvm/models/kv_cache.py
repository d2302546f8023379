"""The paged KV cache: TVM's runtime and attention functions, with this package's rotary embedding.

The same as ``TIRPagedKVCache``, except that the function which splits and rotates QKV is that of
:mod:`nvfp4_tvm.models.rope`, and that attention over sliding windows and token trees, half of the code and of
its compile time, is left out.
"""

from __future__ import annotations

from tvm import ir, relax, tirx
from tvm.relax.frontend.nn.llm import kv_cache as tvm_kv_cache
from tvm.relax.frontend.nn.llm.kv_cache import AttnKind, PagedKVCache, RopeMode
from tvm.target import Target

from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.models.rope import DEFAULT_THETA, split_rotary

#: Tokens in a page of the KV cache: TVM's attention functions are written for 16.
PAGE_SIZE = 16


def create(
    config: DecoderConfig,
    dtype: str,
    target: Target,
    max_batch_size: tirx.Var,
    max_total_seq_len: tirx.Var,
    prefill_chunk_size: tirx.Var,
    page_size: tirx.Var,
    support_sliding_window: tirx.Var,
) -> PagedKVCache:
    """Emit the call that creates a KV cache, and add the functions it uses to the module being built.

    Parameters
    ----------
    config : DecoderConfig
        The model.
    dtype : str
        Of queries, keys, values and pages. Softmax and sums are float32.
    target : tvm.target.Target
        llvm takes TVM's serial CPU functions, any other its GPU ones, which come scheduled.
    max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window : tvm.tirx.Var
        Sequences, tokens in all of them, tokens of one prefill, :data:`PAGE_SIZE`, and 0.
    """
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    builder, unused = relax.BlockBuilder.current(), relax.Tuple([])

    def add(function: tirx.PrimFunc, name: str) -> relax.GlobalVar:
        return builder.add_func(function, name)

    def attention(function: tirx.PrimFunc, name: str) -> relax.Tuple:
        return relax.Tuple([ir.StringImm("tirx"), add(function, name)])

    kernels = tvm_kv_cache
    if target.kind.name == "llvm":
        ragged = kernels._attention_prefill_ragged_cpu(kv_heads, heads, head_dim, head_dim, dtype, {})
        prefill = kernels._attention_prefill_cpu(kv_heads, heads, head_dim, dtype, False, {})
        decode = kernels._attention_decode_cpu(kv_heads, heads, head_dim, dtype, False, {})
        merge = kernels._merge_state_inplace_cpu(dtype)
        copy_page = kernels._copy_single_page_cpu(kv_heads, PAGE_SIZE, head_dim, dtype)
        compact = kernels._compact_kv_copy_cpu(kv_heads, head_dim, dtype)
    else:
        ragged = kernels._attention_prefill_ragged(kv_heads, heads, head_dim, head_dim, dtype, {}, target)
        prefill = kernels._attention_prefill(kv_heads, heads, head_dim, dtype, False, {}, target)
        decode = kernels._attention_decode(kv_heads, heads, head_dim, dtype, False, {}, target)
        merge = kernels._merge_state_inplace(heads, head_dim, dtype, target, "merge_state")
        copy_page = kernels._copy_single_page(kv_heads, PAGE_SIZE, head_dim, dtype, target)
        compact = kernels._compact_kv_copy(kv_heads, head_dim, dtype, target)
    append = kernels._kv_cache_transpose_append(kv_heads, head_dim, dtype)
    debug = kernels._kv_cache_debug_get_kv(config.num_hidden_layers, kv_heads, head_dim, dtype)
    rotary = split_rotary(config.rope, heads, kv_heads, head_dim, dtype)

    # in the order of vm.builtin.paged_attention_kv_cache_create (src/runtime/vm/paged_kv_cache.cc)
    arguments = [
        relax.ShapeExpr(
            [max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window]
        ),
        relax.ShapeExpr([0, config.num_hidden_layers]),  # layers of the one pipeline stage
        *map(relax.prim_value, (heads, kv_heads, head_dim, head_dim)),
        relax.ShapeExpr([int(AttnKind.MHA)] * config.num_hidden_layers),
        relax.prim_value(False),  # disaggregation
        relax.prim_value(RopeMode.NORMAL),
        relax.prim_value(1),  # scale and
        relax.prim_value(DEFAULT_THETA),  # base of TVM's own rotary embedding, unused
        relax.const(config.rope.table, "float32"),  # passed on to the split_rotary function
        relax.op.zeros((), dtype),
        add(append, "kv_cache_append"),
        unused,  # append of latent attention
        attention(ragged, "attention_prefill_ragged"),
        attention(prefill, "attention_prefill"),
        attention(decode, "attention_decode"),
        unused,  # prefill and
        unused,  # decode of sliding windows
        unused,  # token trees, paged and
        unused,  # ragged
        unused,  # latent attention
        relax.Tuple([add(merge, "merge_state")]),
        add(rotary, "split_rotary"),
        add(copy_page, "kv_cache_copy_page"),
        add(debug, "kv_cache_debug"),
        add(compact, "kv_cache_compact"),
    ]
    call = relax.call_pure_packed(
        "vm.builtin.paged_attention_kv_cache_create", *arguments, ty_args=relax.AnyType()
    )
    return PagedKVCache(_expr=call, _name="paged_kv_cache")
