#!/usr/bin/env bash
# image.sh PROGRAM OUT [SUFFIX]: builds the image localhost/annulus:VERSION[-SUFFIX] of
# deploy/Containerfile around PROGRAM without a daemon. It leaves OUT.tar, which `podman load -i` takes,
# and OUT.spdx.json, which says what is in it. The base is made here, from this machine's own package
# sources: the program runs on the libraries that it was built with. SYFT is the program that lists.
set -euo pipefail
program=$1 out=$2
version=$("$program" version | cut -d ' ' -f 2)
name=localhost/annulus:$version${3:+-$3}
base=localhost/annulus-base

mkdir -p "$(dirname "$out")"
scratch=$(mktemp -d "$(realpath "$(dirname "$out")")/building.XXXXXX")
tool() {
  buildah --log-level error --root "$scratch/storage" --runroot "$scratch/run" --storage-driver vfs "$@"
}
leave() {
  tool rm --all >/dev/null 2>&1 || true
  rm -rf "$scratch"
}
trap leave EXIT

# Whatever /etc/containers says: nothing is fetched from a registry.
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$scratch/policy.json"

# shellcheck disable=SC1091
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
  [[ ! -s $file ]] || sources+=("$file")
done
mmdebstrap --quiet --variant=apt "$suite" "$scratch/base.tar" "${sources[@]}"
container=$(tool from scratch)
tool add --quiet "$container" "$scratch/base.tar" / >/dev/null
tool commit --quiet --rm --signature-policy "$scratch/policy.json" "$container" "$base" >/dev/null

libraries=$(deploy/image_files.sh "$program")

made=$(git log -1 --format=%ct 2>/dev/null || date +%s)
tool build --quiet --isolation chroot --network host --pull=never \
  --signature-policy "$scratch/policy.json" --timestamp "$made" \
  --build-arg BASE="$base" --build-arg LIBRARIES="${libraries//$'\n'/ }" \
  --build-arg PROGRAM="$program" --build-arg VERSION="$version" \
  --tag "$name" --file deploy/Containerfile . >/dev/null
rm -f "$out.tar"
tool push --quiet --signature-policy "$scratch/policy.json" "$name" \
  "oci-archive:$out.tar:$name"
mkdir "$scratch/home"
HOME=$scratch/home SYFT_CHECK_FOR_APP_UPDATE=false "${SYFT:-syft}" scan --quiet \
  --source-name "$name" --source-version "$version" --output "spdx-json=$out.spdx.json" \
  "oci-archive:$out.tar"
echo "$name in $out.tar ($(du -h "$out.tar" | cut -f 1)); podman load -i $out.tar"
