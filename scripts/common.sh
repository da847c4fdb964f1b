# common.sh - sourced by scripts and test suites: where the tree is, and how Open MPI behaves in small places.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${RETRO_BUILD:-$root/build}
jobs=$(nproc)

case "${RETRO_REAL_GPU:-0}" in # one meaning everywhere, so that no test runs on what its caller did not mean
0 | 1) ;;
*)
    echo "RETRO_REAL_GPU=$RETRO_REAL_GPU: set it to 1 (tests on hardware), or to 0 or nothing (on the emulator)" >&2
    exit 2
    ;;
esac

# Containers run as root and have fewer cores than ranks; ranks with threads of their own must not be bound to one
# core; and a rank that waits must let the others run: without yielding, three ranks on two cores are 1000 times slower.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1
