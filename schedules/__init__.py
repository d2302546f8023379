"""Kernel families: one rule class a file, first match wins."""
