#!/usr/bin/env bash
# Installs the client into an empty prefix and builds the examples against it in an empty folder, as
# a user would: with find_package, and one with pkg-config. Then runs them, in one process and
# against a service.
# Usage: package.sh BUILD_DIR SOURCE_DIR SCRATCH_DIR CXX [CXX_FLAG…]
set -euo pipefail
build=$1 source=$2 scratch=$3 cxx=$4
shift 4
rm -rf "$scratch"
mkdir -p "$scratch/examples"
cmake --install "$build" --prefix "$scratch/prefix" --component client >/dev/null

# No header of ours may need one that the user does not have.
if grep -rnE '#include [<"](grpc|google|ucp|ucs|hwy|spdlog|nlohmann)' "$scratch/prefix/include"; then
  echo "an installed header includes one of those above; expected Abseil's and the standard's" >&2
  exit 1
fi

cp "$source"/runtime/client/examples/* "$scratch/examples"
cmake -G Ninja -S "$scratch/examples" -B "$scratch/build" -DCMAKE_PREFIX_PATH="$scratch/prefix" \
  -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_CXX_FLAGS="$*" >/dev/null
cmake --build "$scratch/build" --parallel 2 >/dev/null

lib=$(dirname "$(find "$scratch/prefix" -name libannulus_client.so.0)")
export PKG_CONFIG_PATH=$lib/pkgconfig
# shellcheck disable=SC2046
"$cxx" -std=c++20 "$@" "$scratch/examples/hello.cc" -o "$scratch/hello" \
  $(pkg-config --cflags --libs annulus) "-Wl,-rpath,$lib"

exported=$(nm -DC --defined-only "$lib/libannulus_client.so" | sed 's/^[0-9a-f]* . //' |
  grep -vE '^(annulus::|ANNULUS_0)' || true)
if [[ -n $exported ]]; then
  echo "the library exports, beside annulus:: functions: $exported" >&2
  exit 1
fi

coproc service { exec "$build/annulus" up --workers 2; }
trap 'kill "$service_PID"; wait "$service_PID" || true' EXIT
read -r -t 30 ready endpoint <&"${service[0]}"
[[ $ready == ready ]]
"$scratch/hello"
for example in hello decode_loop forks cascade; do
  "$scratch/build/$example"
  "$scratch/build/$example" "$endpoint"
done
