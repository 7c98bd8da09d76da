"""
Virtual machines: reading a guest's binary, linking it to hostcore, running it.

Two halves. Pure, for everybody, without wasmtime: `abi`, `wasm_reader`, `wasm_module`, `wasm_binary`,
`wasm_rewrite`, `link`, `artefacts`, `identity`, `settings`, `config_blob`. Only for the compiler and the
worker, since they import wasmtime: `engine`, `plugin`, `instance`, `window`, `callbacks`, `traps`. This file
imports nothing, so that the trusted side can import the first half.
"""
