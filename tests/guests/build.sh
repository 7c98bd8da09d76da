#!/usr/bin/env bash
# Rebuilds the guest modules of this folder from their sources.
#
#   tests/guests/build.sh            all of them
#   tests/guests/build.sh rust c     only these kinds: rust, c, go, assemblyscript, misdeeds
#
# What each kind needs is listed in README.md. PYTHON names a Python that has wasmtime and ziglang.
set -euo pipefail

guests=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT

# Panic messages carry source paths; the modules shall not depend on where they were built.
build_rust() {
    cd "$guests/rust"
    local cargo_home=${CARGO_HOME:-$HOME/.cargo} name
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$scratch/rust}
    RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$guests=/guests" \
        cargo build --locked --release --target wasm32-wasip1
    for name in */Cargo.toml; do
        name=$(dirname "$name")
        cp "$CARGO_TARGET_DIR/wasm32-wasip1/release/$name.wasm" "$name.wasm"
        chmod 644 "$name.wasm"
    done
}

# Freestanding: no C library, and only what a guest really calls becomes an import.
compile_c() {
    local source
    export ZIG_GLOBAL_CACHE_DIR=${ZIG_GLOBAL_CACHE_DIR:-$scratch/zig} ZIG_LOCAL_CACHE_DIR=$scratch/zig-local
    for source in *.c; do
        "$python" -m ziglang cc -target wasm32-freestanding -std=c11 -Os -nostdlib -fno-builtin \
            -Wall -Wextra -Werror -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=16384 \
            -o "${source%.c}.wasm" "$source"
        chmod 644 "${source%.c}.wasm"
    done
}

build_c() {
    cd "$guests/c"
    compile_c
}

build_go() {
    cd "$guests/go"
    GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -buildvcs=false -ldflags="-s -w" \
        -o go_filter.wasm .
    GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -buildvcs=false -ldflags="-s -w" \
        -o go_files.wasm ./files
}

build_assemblyscript() {
    cp -r "$guests/assemblyscript" "$scratch/assemblyscript"
    cd "$scratch/assemblyscript"
    npm ci --no-audit --no-fund --ignore-scripts
    npx asc as_filter.ts -b "$guests/assemblyscript/as_filter.wasm" --use abort=abort_proc_exit --optimize
}

build_misdeeds() {
    cd "$guests/misdeeds"
    "$python" assemble.py
    compile_c
}

[ $# -gt 0 ] || set -- rust c go assemblyscript misdeeds
for kind in "$@"; do
    case $kind in
    rust | c | go | assemblyscript | misdeeds) (build_"$kind") ;;
    *)
        echo "$0: unknown kind \"$kind\"; known: rust c go assemblyscript misdeeds" >&2
        exit 2
        ;;
    esac
done
