#!/bin/sh
# image_files.sh PROGRAM: prints the packages of Debian that the libraries of PROGRAM come from.
# image_files.sh PROGRAM FOLDER: lays out in FOLDER what an image of PROGRAM holds: the program, what is
# needed of these packages to run it, and a user. Each package keeps its licence and its entry in dpkg's
# database, in the place where scanners look for it in images without dpkg.
set -eu
program=$1
folder=${2:-}

# A file's package: dpkg knows it by the name before or after /lib became a link to /usr/lib.
owners() {
  while read -r file; do
    dpkg-query --search "$(readlink -f "$file")" "$file" 2>/dev/null | head -n 1
  done | sed 's/:.*//' | sort -u
}

needed_by() {
  ldd "$@" 2>/dev/null | sed -n 's/.*\(=> \|\t\)\(\/[^ ]*\) (.*/\2/p' | sort -u
}
packages=$(needed_by "$program" | owners)
[ -n "$folder" ] || { echo "$packages"; exit; }

# Libraries load others, as UCX its transports, which no program names: what these need is needed too.
known=
while [ "$packages" != "$known" ]; do
  known=$packages
  # shellcheck disable=SC2086
  libraries=$(dpkg-query --listfiles $packages | grep '\.so' | grep -v /gconv/)
  # shellcheck disable=SC2086
  packages=$({ echo "$packages"; needed_by $libraries | owners; } | sort -u)
done

mkdir -p "$folder/usr/lib" "$folder/usr/lib64" "$folder/usr/local/bin" "$folder/etc" "$folder/tmp" \
  "$folder/var/lib/dpkg/status.d"
ln -s usr/lib usr/lib64 "$folder/"
chmod 1777 "$folder/tmp"
# shellcheck disable=SC2086
dpkg-query --listfiles $packages |
  sed -E '\#/gconv/|^/(usr/share|usr/s?bin|s?bin|var)/#d' | sort -u | while read -r file; do
  [ -d "$file" ] && [ ! -L "$file" ] || echo "${file#/}"
done | tar --create --directory / --files-from - |
  tar --extract --directory "$folder" --keep-directory-symlink
for package in $packages; do
  mkdir -p "$folder/usr/share/doc/$package"
  cp -L "/usr/share/doc/$package/copyright" "$folder/usr/share/doc/$package/"
  dpkg-query --status "$package" >"$folder/var/lib/dpkg/status.d/$package"
done
cp "$program" "$folder/usr/local/bin/"
cp /etc/os-release "$folder/etc/"
printf 'hosts: files dns\npasswd: files\ngroup: files\n' >"$folder/etc/nsswitch.conf"
printf 'root:x:0:0::/:/\nannulus:x:65532:65532::/tmp:/\n' >"$folder/etc/passwd"
printf 'root:x:0:\nannulus:x:65532:\n' >"$folder/etc/group"
