"""Print what CMake needs of the installed TVM: FFI's include directory and library, the runtime's library."""

from tvm.libinfo import find_libtvm_runtime
from tvm_ffi.libinfo import find_include_path, find_libtvm_ffi

if __name__ == "__main__":
    print(find_include_path(), find_libtvm_ffi(), find_libtvm_runtime(), sep=";")
