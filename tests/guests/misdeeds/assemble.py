"""Assembles each `.wat` of this folder into the `.wasm` beside it."""

from pathlib import Path

import wasmtime

if __name__ == "__main__":
    for source in sorted(Path(__file__).parent.glob("*.wat")):
        source.with_suffix(".wasm").write_bytes(wasmtime.wat2wasm(source.read_text()))
