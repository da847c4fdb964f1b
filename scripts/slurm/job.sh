# job.sh - sourced by the batch scripts beside it: how Retro runs inside a Slurm allocation.
#
# sbatch copies a script away from the tree, so the tree is RETRO_ROOT, or the folder sbatch was called in. Logs and
# failure.json go to RETRO_LOGS, or retro-JOBID beside the job's output.
#
# retro_job COMMAND [options]: runs it on all tasks of the allocation under mpirun. job_run PROGRAM...: any program, which
# must end with 75 on USR1. Both return when it is done, else end the script:
#   75   interrupted (a signal, a lost node, a failed link): the job was put back into the queue and will go on
#   else what retro said: 2 options, 3 model, 4 memory, ... (docs/operations.md); trying again would not help
# A job goes back at most RETRO_RETRIES times (5) after failures; interruptions by signal do not count.
root=${RETRO_ROOT:-$SLURM_SUBMIT_DIR}
retro=${RETRO_PROGRAM:-$root/build/retro}
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
logs=${RETRO_LOGS:-$SLURM_SUBMIT_DIR/retro-$job}
if [ ! -x "$retro" ]; then
    echo "job.sh: $retro is missing: submit from Retro's folder, or set RETRO_ROOT" >&2
    exit 2
fi

# Ranks have threads of their own; a waiting rank lets others run; and mpirun notices a lost host after 6 s, not 480.
export OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_oob_tcp_keepalive_time=3 OMPI_MCA_oob_tcp_keepalive_intvl=1 OMPI_MCA_oob_tcp_keepalive_probes=3

interrupted=
back_to_queue() {
    # A cancelled job is to stay so, and one that somebody else has put back already needs no more.
    case $(scontrol show job -o "$SLURM_JOB_ID") in
    *JobState=RUNNING*) ;;
    *) exit 75 ;;
    esac
    echo "job.sh: $1: back to the queue" >&2
    if scontrol requeue "$SLURM_JOB_ID"; then sleep 60; fi
    exit 75
}

job_run() {
    local code=0 child
    "$@" &
    child=$!
    # Slurm's TERM goes to this shell (--signal=B:TERM@S); mpirun passes USR1 on to every rank at once.
    trap 'interrupted=1; kill -USR1 $child 2>/dev/null' TERM USR1
    wait $child || code=$?
    while kill -0 $child 2>/dev/null; do
        code=0
        wait $child || code=$? # a trap ended the first wait
    done
    trap - TERM USR1
    # mpirun may end with 0 after it lost a node: failure.json knows better.
    if [ $code -eq 0 ] && [ ! -e "$logs/failure.json" ]; then return 0; fi
    [ -z "$interrupted" ] || back_to_queue "interrupted"
    case $code in
    0 | 5 | 9 | 75 | 137 | 141 | 143 | 205)
        if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RETRO_RETRIES:-5}" ]; then back_to_queue "exit code $code"; fi
        ;;
    esac
    echo "job.sh: exit code $code: see $logs" >&2
    exit $code
}

retro_job() { job_run mpirun "$retro" "$@" --log-dir "$logs"; }
