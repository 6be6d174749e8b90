#!/usr/bin/env bash
# The sweep under plain mpirun (Open MPI), on this machine or on those of a host file:
#   mpirun.sh FOLDER RANKS [HOSTFILE]        e.g. mpirun.sh results 4
# FOLDER is to be seen by rank 0 only; the program must be at the same path on all hosts.
#
# Binding: a rank is a worker and its compute threads take the cores that it is bound to, each on
# one of its own. Best is one rank per NUMA domain (or socket), so that a rank's KV is in the memory
# of its own cores. Ranks that cannot have a domain each share all cores, unbound.
# UCX: annulus_bench opens UCX by itself with --ucx-transports (ANNULUS_UCX_TRANSPORTS; "shm,tcp";
# on InfiniBand "rc,shm,tcp"). Which interfaces it takes: UCX_NET_DEVICES=mlx5_0:1 or eth0.
# `--mca pml ob1` keeps Open MPI itself off UCX, so that these variables are for one of the two
# only; where MPI should use InfiniBand, say MPI_ARGS="--mca pml ucx".
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: mpirun.sh FOLDER RANKS [HOSTFILE]" >&2
  exit 2
fi
folder=$1
ranks=$2

launcher=(mpirun -np "$ranks")
read -ra mpi_args <<<"${MPI_ARGS:---mca pml ob1}"
launcher+=("${mpi_args[@]}")
if [[ -n ${3:-} ]]; then
  launcher+=(--hostfile "$3" --map-by ppr:1:numa --bind-to numa)
elif [[ $ranks -le $(find /sys/devices/system/node -maxdepth 1 -name 'node[0-9]*' | wc -l) ]]; then
  launcher+=(--map-by ppr:1:numa --bind-to numa)
else
  launcher+=(--oversubscribe --bind-to none)
fi
# The ranks of other hosts get the variables that they are to get by name.
while read -r name; do
  launcher+=(-x "$name")
done < <(compgen -e ANNULUS_)
# mpirun refuses root without these: containers know no other user.
if [[ $(id -u) == 0 ]]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Open MPI 4 adds nothing to what a failed job has said; 5 does not know the variable.
export OMPI_MCA_orte_execute_quiet=1
exec "$(dirname "${BASH_SOURCE[0]}")/sweep.sh" "$folder" "${launcher[@]}"
