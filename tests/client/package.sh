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

# The public headers and nothing else, each of which compiles alone, with Abseil only.
if ! diff <(cd "$source/base/api" && find annulus -type f | sort) \
  <(cd "$scratch/prefix/include" && find . -type f -printf '%P\n' | sort); then
  echo "the files above are installed on one side only; expected base/api's headers alone" >&2
  exit 1
fi
read -ra abseil <<<"$(pkg-config --cflags-only-I absl_statusor)"
for header in "$scratch"/prefix/include/annulus/*; do
  if [[ $header != *.h ]] || grep -nE '#include ("|<[^>]*/)' "$header" | grep -vE '"(absl|annulus)/'; then
    echo "$(basename "$header"): expected a header of annulus/, absl/ and the standard library" >&2
    exit 1
  fi
  echo "#include <annulus/$(basename "$header")>" |
    "$cxx" -std=c++20 "$@" -fsyntax-only -I"$scratch/prefix/include" "${abseil[@]}" -x c++ -
done

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

functions=$(nm -DC --defined-only "$lib/libannulus_client.so")
for name in $(sed -n '/^class Client {/,/ private:/p' "$scratch/prefix/include/annulus/client.h" |
  grep -oE '^  [a-zA-Z].* [A-Za-z]+\(' | grep -oE '[A-Za-z]+\($' | sort -u); do
  if [[ $functions != *"annulus::Client::$name"* ]]; then
    echo "the library does not export Client::$name...), expected every call" >&2
    exit 1
  fi
done

symbols=$functions$(nm -D --defined-only "$lib/libannulus_client.so")
for pattern in $(sed -nE 's/^ *((annulus::|_ZN7annulus).*);$/\1/p' \
  "$source/deploy/cmake/annulus_client.map"); do
  # shellcheck disable=SC2053
  if [[ $symbols != *$pattern* ]]; then
    echo "the library does not export $pattern, expected all that annulus_client.map names" >&2
    exit 1
  fi
done

coproc service { exec "$build/annulus" up --workers 2; }
trap 'kill "$service_PID"; wait "$service_PID" || true' EXIT
read -r -t 30 ready endpoint <&"${service[0]}"
[[ $ready == ready ]]
"$scratch/hello"
for example in hello decode_loop forks cascade; do
  "$scratch/build/$example"
  "$scratch/build/$example" "$endpoint"
done
