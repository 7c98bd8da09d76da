"""
The compiler: a process of its own that turns a module, hostile input, into an artefact bundle.

`client` is for the trusted side and imports no wasmtime; `job` and `__main__` run inside the compiler's
process.
"""
