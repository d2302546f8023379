"""The base class of all configurations: fields that a class does not have are its ``kwargs``."""

import dataclasses
import json


@dataclasses.dataclass
class ConfigBase:
    @classmethod
    def from_dict(cls, source):
        known = {field.name for field in dataclasses.fields(cls)}
        kwargs = {name: value for name, value in source.items() if name not in known}
        return cls(**{name: value for name, value in source.items() if name in known}, kwargs=kwargs)

    @classmethod
    def from_file(cls, source):
        return cls.from_dict(json.loads(source.read_text()))

    def asdict(self):
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "kwargs"}
