"""Loading, quantizing and writing parameters."""

from tvm import cpu
from tvm.contrib import tvmjs

from mlc_llm.loader import LOADER


def convert_weight(config, quantization, model, source, source_format, output):
    model_config = model.config.from_file(config)
    _, quantize_map = model.quantize[quantization.kind](model_config, quantization)
    loader = LOADER[source_format](
        path=source,
        extern_param_map=model.source[source_format](model_config, quantization),
        quantize_param_map=quantize_map,
    )
    parameters = loader.load(device=cpu(), preshard_funcs=None)
    tvmjs.dump_tensor_cache(parameters, str(output), encode_format="f32-to-bf16", show_progress=False)
