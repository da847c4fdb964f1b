# job.sh - sourced by the batch scripts beside it: how Retro runs inside a Slurm allocation.
#
# sbatch copies a script away from the tree, so the tree is RETRO_ROOT, or the folder sbatch was called in. Logs and
# failure.json go to RETRO_LOGS (RETRO_LOGS/TASK in an array), or retro-JOBID beside the job's output.
#
# retro_job COMMAND [options]: runs it on all tasks of the allocation under mpirun. job_run PROGRAM...: any program, which
# must end with 75 on USR1. Both return when it is done, else end the script:
#   75   interrupted (a signal, a lost node, a failed link, a start that failed): the job was put back into the queue and
#        will go on
#   else what retro said: 2 options, 3 model, 4 memory, ... (docs/operations.md); trying again would not help
# A job goes back at most RETRO_RETRIES times (5) after failures; interruptions by signal do not count.

# Slurm's TERM goes to this shell (--signal=B:TERM@S), at any time. mpirun passes USR1 on to every rank at once, but it has
# nobody to pass it to before its daemons are there: a start that is interrupted is given up.
interrupted= child= told=
pass_on() {
    told=1
    if begun; then kill -USR1 "$child" 2>/dev/null; else kill -TERM "$child" 2>/dev/null; fi
}
begun() { :; }
trap 'interrupted=1; [ -z "$child" ] || pass_on' TERM USR1

root=${RETRO_ROOT:-$SLURM_SUBMIT_DIR}
retro=${RETRO_PROGRAM:-$root/build/retro}
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
logs=${RETRO_LOGS:+$RETRO_LOGS${SLURM_ARRAY_TASK_ID:+/$SLURM_ARRAY_TASK_ID}}
logs=${logs:-$SLURM_SUBMIT_DIR/retro-$job}
if [ ! -x "$retro" ]; then
    echo "job.sh: $retro is missing: submit from Retro's folder, or set RETRO_ROOT" >&2
    exit 2
fi

# Ranks have threads of their own; a waiting rank lets others run; and mpirun notices a lost host after 6 s, not 480.
export OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_oob_tcp_keepalive_time=3 OMPI_MCA_oob_tcp_keepalive_intvl=1 OMPI_MCA_oob_tcp_keepalive_probes=3
# What srun says when mpirun's daemons cannot be started is hidden else.
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || export OMPI_MCA_plm_base_verbose=1

back_to_queue() {
    local ended=
    trap 'ended=1' TERM USR1 # a TERM is obeyed when the job is put back, in order: a script may have something to clean up
    # A cancelled job is to stay so, and one that somebody else has put back already needs no more.
    case $(scontrol show job -o "$SLURM_JOB_ID") in
    *JobState=RUNNING*) ;;
    *) exit 75 ;;
    esac
    echo "job.sh: $1: back to the queue" >&2
    if scontrol requeue "$SLURM_JOB_ID"; then
        trap 'exit 75' TERM USR1 # which Slurm ends this shell with
        [ -n "$ended" ] || { sleep 60 & wait $!; }
    fi
    exit 75
}

may_retry() { [ "${SLURM_RESTART_COUNT:-0}" -lt "${RETRO_RETRIES:-5}" ]; }

job_run() {
    local code=0
    [ -z "$interrupted" ] || back_to_queue "interrupted before the start"
    rm -f "$logs/failure.json" # of another run
    "$@" &
    child=$!
    [ -z "$interrupted" ] || [ -n "$told" ] || pass_on # it came in between
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a trap ended the wait
        begun || back_to_queue "interrupted in the start"
        code=0
        wait "$child" || code=$?
    done
    child=
    # mpirun may end with 0 after it lost a node: failure.json knows better.
    if [ $code -eq 0 ] && [ ! -e "$logs/failure.json" ]; then return 0; fi
    [ -z "$interrupted" ] || back_to_queue "interrupted"
    case $code in
    2 | 3 | 4 | 126 | 127) ;;
    0 | 5 | 9 | 75 | 137 | 141 | 143 | 205) if may_retry; then back_to_queue "exit code $code"; fi ;;
    *) if ! begun && may_retry; then back_to_queue "no rank was started, exit code $code"; fi ;;
    esac
    echo "job.sh: exit code $code: see $logs" >&2
    [ $code -ne 0 ] || code=5
    exit $code
}

# A rank opens its log as soon as all ranks are there.
retro_job() {
    mkdir -p "$logs"
    rm -f "$logs/rank-0.jsonl"
    begun() { [ -e "$logs/rank-0.jsonl" ]; }
    job_run mpirun "$retro" "$@" --log-dir "$logs"
}
