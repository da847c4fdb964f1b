# folder.sh DIR - runs a folder of pytest files as a suite, against build/retro.
. "$(dirname "$0")/lib.sh"
need_build
count_pytest "$1"
