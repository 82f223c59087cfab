"""A fuzzer over the C code, with the address and undefined-behaviour sanitizers."""
