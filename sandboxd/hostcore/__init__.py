"""The ABI host: C sources, compiled to WebAssembly by `sandboxd.hostcore.build`."""
