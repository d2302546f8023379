"""Kernel families: one rule class a file, first match wins."""

from nvfp4_tvm.schedules.parsing import parse_fast

parse_fast()
