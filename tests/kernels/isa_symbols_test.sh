#!/bin/sh
# isa_symbols_test.sh ISA OBJECT: the object compiled for an instruction set must offer the linker
# nothing that another file could use instead of its own: an inline function of a shared header
# compiled with AVX-512 would crash a CPU without it.
strays=$(nm -C "$2" | grep -E ' [WVu] ' | grep -v -E "flashsvd::$1::| DW\.ref\.__")
if [ -n "$strays" ]; then
  echo "weak symbols outside flashsvd::$1 in $2:"
  echo "$strays"
  exit 1
fi
