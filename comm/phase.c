/* phase.c - how far each rank's start has come, as rank 0 knows it: so that a start that hangs ends with the
 * names of those it waits for.
 *
 * A rank sends rank 0 a note of 36 bytes when it begins something (comm_phase) and never waits for it to be
 * read: notes of this size are buffered by MPI. At a meeting point (comm_arrive) rank 0 reads notes until
 * everyone stands there, then lets all go on; past the deadline it ends the job with one line. A rank that
 * hears nothing for GRACE_S longer says that rank 0 itself is missing. Waits sleep between looks: they are
 * long, and the cores may be needed by the ranks that are late. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "comm/group.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

enum { TAG_NOTE = 7001, TAG_GO = 7002, GRACE_S = 5, LOOK_NS = 200000, NAMED_MAX = 8 };

struct comm_phase_note {
    char name[32];
    MPI_Request sent;
};

void phase_open(struct comm *c, const char *host)
{
    c->phase = calloc((size_t)c->size, sizeof *c->phase);
    c->note = calloc(1, sizeof *c->note);
    if (!c->phase || !c->note) DIE(EXIT_CODE_MEMORY, NULL, "no memory for the names of %d ranks", c->size);
    c->note->sent = MPI_REQUEST_NULL;
    struct comm_phase mine = {.name = "start"};
    snprintf(mine.host, sizeof mine.host, "%s", host);
    c->phase[c->rank] = mine;
    if (c->size > 1)
        mpi_check(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, c->phase, sizeof mine, MPI_BYTE, c->mpi),
                  "MPI_Allgather of the hosts");
}

void phase_close(struct comm *c)
{
    if (c->note && c->note->sent != MPI_REQUEST_NULL) MPI_Wait(&c->note->sent, MPI_STATUS_IGNORE);
    free(c->phase);
    free(c->note);
}

void comm_phase(struct comm *c, const char *name)
{
    ASSERT(strlen(name) < sizeof c->note->name);
    strcpy(c->phase[c->rank].name, name);
    if (c->rank == 0) return;
    mpi_check(MPI_Wait(&c->note->sent, MPI_STATUS_IGNORE), "MPI_Wait for a note");
    memset(c->note->name, 0, sizeof c->note->name);
    strcpy(c->note->name, name);
    mpi_check(MPI_Isend(c->note->name, sizeof c->note->name, MPI_BYTE, 0, TAG_NOTE, c->mpi, &c->note->sent),
              "MPI_Isend of a note");
}

static void nap(void)
{
    struct timespec t = {.tv_nsec = LOOK_NS};
    nanosleep(&t, NULL);
}

/* Rank 0: takes the notes of one rank until it stands at `name`. */
static bool stands_at(struct comm *c, int rank, const char *name)
{
    struct comm_phase *p = &c->phase[rank];
    while (strcmp(p->name, name) != 0) {
        int there = 0;
        mpi_check(MPI_Iprobe(rank, TAG_NOTE, c->mpi, &there, MPI_STATUS_IGNORE), "MPI_Iprobe");
        if (!there) return false;
        mpi_check(MPI_Recv(p->name, sizeof p->name, MPI_BYTE, rank, TAG_NOTE, c->mpi, MPI_STATUS_IGNORE),
                  "MPI_Recv of a note");
        p->name[sizeof p->name - 1] = 0;
    }
    return true;
}

/* "rank 2 on node1 (last seen at: opening the device), rank 3 ..." */
static _Noreturn void die_missing(struct comm *c, const char *name, double timeout_s)
{
    char text[1024];
    size_t n = 0;
    int missing = 0;
    for (int r = 0; r < c->size; r++) {
        if (stands_at(c, r, name)) continue;
        if (missing++ >= NAMED_MAX || n > sizeof text - 160) continue;
        n += (size_t)snprintf(text + n, sizeof text - n, "%srank %d on %s (last seen at: %s)", n ? ", " : "",
                              comm_world_rank(c, r), c->phase[r].host, c->phase[r].name);
    }
    if (missing > NAMED_MAX) snprintf(text + n, sizeof text - n, " and %d more", missing - NAMED_MAX);
    DIE(EXIT_CODE_PEER, "see the log of those ranks; --start-timeout gives them longer",
        "start: after %.0f s at \"%s\" %s missing: %s", timeout_s, name,
        missing == 1 ? "one rank is" : "ranks are", text);
}

static void lead(struct comm *c, const char *name, double timeout_s)
{
    int64_t deadline = clock_us() + (int64_t)(timeout_s * 1e6);
    for (int r = 0; r < c->size; r++)
        while (!stands_at(c, r, name)) {
            if (clock_us() > deadline) die_missing(c, name, timeout_s);
            nap();
        }
    for (int r = 1; r < c->size; r++)
        mpi_check(MPI_Send(NULL, 0, MPI_BYTE, r, TAG_GO, c->mpi), "MPI_Send of a go");
}

static void follow(struct comm *c, const char *name, double timeout_s)
{
    int64_t deadline = clock_us() + (int64_t)((timeout_s + GRACE_S) * 1e6);
    int there = 0;
    MPI_Request go;
    mpi_check(MPI_Irecv(NULL, 0, MPI_BYTE, 0, TAG_GO, c->mpi, &go), "MPI_Irecv of a go");
    for (;;) {
        mpi_check(MPI_Test(&go, &there, MPI_STATUS_IGNORE), "MPI_Test");
        if (there) return;
        if (clock_us() > deadline)
            DIE(EXIT_CODE_PEER, "see its log; --start-timeout gives it longer",
                "start: after %.0f s at \"%s\" rank %d on %s is missing", timeout_s + GRACE_S, name,
                comm_world_rank(c, 0), c->phase[0].host);
        nap();
    }
}

void comm_arrive(struct comm *c, const char *name, double timeout_s)
{
    comm_phase(c, name);
    if (c->size == 1) return;
    if (c->rank == 0) lead(c, name, timeout_s);
    else follow(c, name, timeout_s);
}
