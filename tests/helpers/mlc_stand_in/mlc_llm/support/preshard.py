"""Names of shards."""


def _sharded_param_name(name, shard):
    return f"{name}_shard-{shard}"
