"""Mappings of parameters, and loaders."""

import dataclasses


@dataclasses.dataclass
class ExternMapping:
    param_map: dict = dataclasses.field(default_factory=dict)
    map_func: dict = dataclasses.field(default_factory=dict)
    unused_params: set = dataclasses.field(default_factory=set)

    def add_mapping(self, map_from, map_to, func):
        self.param_map[map_from], self.map_func[map_from] = map_to, func

    def add_unused(self, name):
        self.unused_params.add(name)


@dataclasses.dataclass
class QuantizeMapping:
    param_map: dict
    map_func: dict


class HuggingFaceLoader:
    def __init__(self, path, extern_param_map, quantize_param_map=None):
        self.arguments = path, extern_param_map, quantize_param_map


LOADER = {"huggingface-torch": HuggingFaceLoader, "huggingface-safetensor": HuggingFaceLoader}
