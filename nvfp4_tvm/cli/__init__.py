"""The nvfp4-tvm command line: one file a command."""
