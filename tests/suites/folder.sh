# folder.sh DIR - runs a folder of pytest files as a suite, against build/retro and the real model (scripts/fetch-model).
. "$(dirname "$0")/lib.sh"
need_build
need_model
count_pytest "$1"
