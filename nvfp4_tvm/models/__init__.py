"""Config-driven decoder models."""

from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.models.decoder import ExportedDecoder, export
from nvfp4_tvm.models.parameters import (
    ParamSource,
    check_tensors,
    load_parameter,
    parameter_sources,
    quantized_modules,
)

__all__ = [
    "DecoderConfig",
    "ExportedDecoder",
    "ParamSource",
    "check_tensors",
    "export",
    "load_parameter",
    "parameter_sources",
    "quantized_modules",
]
