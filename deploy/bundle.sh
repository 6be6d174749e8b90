#!/bin/sh
# bundle.sh FOLDER PROGRAM…: copies the programs and the shared libraries that they need to FOLDER,
# for machines where nothing can be installed. What belongs to every Linux (the C library, the
# loader) and to the GPU's driver is left to the machine, and so are MPI, whose library must be that
# of mpirun, and NCCL, which is large: only benchmark jobs need them. FOLDER/PROGRAM runs as it is.
set -eu
folder=$1
shift
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib"
for program; do
  name=$(basename "$program")
  cp "$program" "$folder/bin/"
  strip --strip-unneeded "$folder/bin/$name"
  ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' |
    grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|libcuda|libnccl|libmpi|libopen-[a-z]*|ld-linux[^/]*)\.so' |
    xargs -r cp -L -n -t "$folder/lib"
  # UCX loads its transports at run time, from a folder beside its library.
  ucs=$(ldd "$program" | sed -n 's/.* => \(\/[^ ]*libucs\.so[^ ]*\) .*/\1/p')
  if [ -n "$ucs" ]; then
    mkdir -p "$folder/lib/ucx"
    cp -L -n "$(dirname "$ucs")"/ucx/libuct*.so* "$(dirname "$ucs")"/ucx/libucm*.so* "$folder/lib/ucx/" 2>/dev/null || true
  fi
  cat >"$folder/$name" <<END
#!/bin/sh
here=\$(dirname "\$(readlink -f "\$0")")
LD_LIBRARY_PATH=\$here/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec "\$here/bin/$name" "\$@"
END
  chmod +x "$folder/$name"
done
