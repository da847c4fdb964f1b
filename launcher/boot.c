#define _GNU_SOURCE
#include "launcher/boot.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "comm/heartbeat.h"
#include "launcher/failure.h"
#include "launcher/logfile.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

/* Set by Open MPI's mpirun, by PMIx (srun --mpi=pmix) and by PMI launchers. */
static bool started_by_launcher(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK") || getenv("PMI_SIZE");
}

/* srun without a working MPI plugin starts N programs that each believe to be alone. */
static void refuse_singletons(const struct comm_world *w)
{
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    if (!tasks || w->size > 1 || getenv("OMPI_COMM_WORLD_SIZE")) return;
    if (atoi(tasks) > 1)
        DIE(EXIT_CODE_OPTION, "start with srun --mpi=pmix, or with mpirun inside the allocation",
            "Slurm started %s tasks but each one sees a world of 1 rank", tasks);
}

/* ---- MPI_Init has no time limit of its own: it waits for ranks that never come. Neither have the collectives between it
 * and the heartbeat; there rank 0 names who is missing, and this is for a rank 0 that is missing itself. Nor has
 * MPI_Finalize, behind the heartbeat. */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    double limit_s;
    int64_t until_us;
    enum guarded { MPI_STARTS, MPI_RUNS, MPI_ENDS } what;
    bool open, done;
} guard = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Noreturn void give_up(enum guarded what, double limit_s)
{
    enum { OTHERS_US = 1500000 };
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *size = getenv("OMPI_COMM_WORLD_SIZE");
    if (!rank) rank = getenv("PMIX_RANK");
    char host[64] = "?", here[160];
    gethostname(host, sizeof host - 1);
    snprintf(here, sizeof here, "rank %s of %s on %s", rank ? rank : "?", size ? size : "?", host);
    logfile_speak();
    if (what == MPI_ENDS)
        LOG_ERROR(
            "%s: all work is done, but MPI did not end within %.0f s: a rank without this line stands still",
            here, limit_s);
    else if (what == MPI_RUNS)
        LOG_ERROR("%s: MPI started, but not all ranks came further within %.0f s: a rank without this line "
                  "stands still",
                  here, limit_s);
    else
        LOG_ERROR("%s: MPI did not start within %.0f s: a rank without this line never came; does "
                  "`mpirun hostname` name all hosts?",
                  here, limit_s);
    usleep(OTHERS_US); /* the first end makes the launcher end the others: they have their line before */
    _exit(EXIT_CODE_PEER);
}

static struct timespec timespec_of(int64_t us)
{
    return (struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
}

static void *watch_start(void *unused)
{
    enum { TICK_US = 250000 };
    (void)unused;
    pthread_mutex_lock(&guard.lock);
    while (!guard.done && clock_us() < guard.until_us) {
        int64_t began = clock_us();
        struct timespec tick = timespec_of(began + TICK_US);
        pthread_cond_timedwait(&guard.changed, &guard.lock, &tick);
        /* This process itself was stopped, or its machine: what it thinks of the others is old. (A launcher that ends
         * its ranks lets those that were stopped go on first.) */
        int64_t stopped_us = clock_us() - began - TICK_US;
        if (stopped_us > TICK_US) guard.until_us += stopped_us;
    }
    bool done = guard.done;
    enum guarded what = guard.what;
    double limit_s = guard.limit_s;
    pthread_mutex_unlock(&guard.lock);
    if (!done) give_up(what, limit_s);
    return NULL;
}

/* From now on. */
static void set_limit(double limit_s)
{
    guard.limit_s = limit_s;
    guard.until_us = clock_us() + (int64_t)(limit_s * 1e6);
}

static void guard_open(enum guarded what, double limit_s)
{
    guard.what = what;
    guard.done = false;
    set_limit(limit_s);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&guard.changed, &monotonic);
    if (pthread_create(&guard.thread, NULL, watch_start, NULL) != 0)
        DIE(EXIT_CODE_MEMORY, "raise ulimit -u", "no thread to watch the start");
    guard.open = true;
}

/* MPI runs, and the start goes on: rank 0 speaks first where it can. */
static void guard_again(double limit_s)
{
    enum { MARGIN_S = 3 };
    if (!guard.open) return;
    pthread_mutex_lock(&guard.lock);
    guard.what = MPI_RUNS;
    set_limit(limit_s + MARGIN_S);
    pthread_cond_signal(&guard.changed);
    pthread_mutex_unlock(&guard.lock);
}

static void guard_close(void)
{
    if (!guard.open) return;
    guard.open = false;
    pthread_mutex_lock(&guard.lock);
    guard.done = true;
    pthread_cond_signal(&guard.changed);
    pthread_mutex_unlock(&guard.lock);
    pthread_join(guard.thread, NULL);
    pthread_cond_destroy(&guard.changed);
}

double boot_mpirun_notices_s(void)
{
    /* Open MPI 4.1's defaults: 300 s, then nine probes 20 s apart. */
    const char *time = getenv("OMPI_MCA_oob_tcp_keepalive_time");
    const char *between = getenv("OMPI_MCA_oob_tcp_keepalive_intvl");
    const char *probes = getenv("OMPI_MCA_oob_tcp_keepalive_probes");
    if (!getenv("OMPI_COMM_WORLD_SIZE")) return 0;
    return (time ? atof(time) : 300) + (between ? atof(between) : 20) * (probes ? atof(probes) : 9);
}

static void leave_interrupted(int unused)
{
    (void)unused;
    _exit(EXIT_CODE_INTERRUPTED);
}

void boot_open(struct comm_world *w, double start_s)
{
    bool launched = started_by_launcher();
    if (launched) {
        guard_open(MPI_STARTS, start_s);
        /* No rank outlives the launcher's daemon on its host. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    comm_world_open(w, launched);
    guard_again(start_s);
    if (w->size > 1) {
        char prefix[96];
        snprintf(prefix, sizeof prefix, "%d@%s", w->rank, w->host);
        log_set_prefix(prefix);
        die_set_hook(comm_world_abort);
    } else {
        signal(SIGUSR1, leave_interrupted); /* of several ranks the heartbeat does it */
    }
    refuse_singletons(w);
}

bool boot_yields(void)
{
    /* The second one is set by an mpirun that sees more ranks than slots. */
    const char *yields = getenv("OMPI_MCA_mpi_yield_when_idle"),
               *crowded = getenv("OMPI_MCA_mpi_oversubscribe");
    return (yields && atoi(yields) != 0) || (crowded && atoi(crowded) != 0);
}

enum status boot_watch(const struct comm_world *w, const struct options *o, int group, struct reason *why)
{
    enum { MARGIN_S = 2, LINGER_MAX_S = 30 };
    enum status mine = o->log_dir ? logfile_open(o->log_dir, w, why) : STATUS_OK;
    if (mine == STATUS_OK && w->rank == 0) mine = failure_check(o, why);
    enum status status = (enum status)comm_world_meet(w, (int)mine, o->start_timeout);
    if (mine != STATUS_OK && w->rank != 0) LOG_WARN("%s", why->text);
    if (status != STATUS_OK && mine == STATUS_OK && w->rank == 0)
        status_fail(why, status, "--log-dir %s: another rank could not make its file there", o->log_dir);
    if (status != STATUS_OK || group == 0) {
        guard_close();
        return status;
    }
    guard_again(o->start_timeout);
    failure_open(o, w);
    double linger = boot_mpirun_notices_s() > 0 ? boot_mpirun_notices_s() + MARGIN_S : 0;
    struct heartbeat_options h = {
        .silence_s = o->peer_timeout,
        .watchdog_s = o->watchdog,
        .start_s = o->start_timeout,
        .linger_s = linger < LINGER_MAX_S ? linger : 0,
        .group = group,
        .record = failure_record,
        .print = failure_print,
    };
    heartbeat_open(w, &h);
    guard_close();
    return STATUS_OK;
}

int boot_close(int exit_code)
{
    guard_close();
    /* Ranks that were watched end together; others may wait in MPI_Finalize for as long as rank 0 works alone. */
    if (heartbeat_close()) guard_open(MPI_ENDS, guard.limit_s);
    comm_world_close();
    guard_close();
    return exit_code;
}
