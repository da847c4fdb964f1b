/* shm.c - all-reduce between the ranks of one host through shared memory.
 *
 * Every rank copies its piece into its own slot, posts, waits for the others and sums the slots in rank
 * order: the same bits on every rank. Large pieces are summed slice by slice, each rank one slice, and copied
 * out after a second post. Why not MPI: 8 KiB between two ranks take 5.5 us there (measured), mostly its
 * protocol.
 *
 * Reuse of a slot is safe with two sets of slots: a rank begins call c+2 only when everyone has posted in
 * call c+1, and has so finished reading call c. A wait spins, giving its core away after every few looks, and
 * after SPIN_US sleeps in a futex. Without the giving away, three ranks on two cores take 275 us for a small
 * sum instead of 5 to 40 (measured on a busy machine): the spinner holds the core of the one it waits for. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mpi.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "comm/group.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

enum {
    PIECE = 1 << 18,      /* elements handled at once: 1 MiB a slot */
    DIRECT_MAX = 1 << 13, /* up to here every rank sums everything itself: one wait instead of two */
    SPIN_US = 300,        /* the longest wait between ranks whose work is even, and little beside a step */
};

struct post { /* one rank's count of posts, on its own cache line */
    _Alignas(64) _Atomic uint32_t count;
    _Atomic uint32_t sleepers;
};

struct shm_state {
    char *map;
    size_t map_bytes;
    struct post *post; /* (size) */
    float *slots;      /* (2, size, PIECE); elements of two bytes fill the first half of a slot */
    float *sums;       /* (2, PIECE) */
    uint32_t posted;   /* how often this rank posted */
    unsigned parity;
};

static void post(struct shm_state *s, int rank)
{
    struct post *p = &s->post[rank];
    atomic_store(&p->count, ++s->posted);
    /* Sequentially consistent with the sleeper's increment: either we see it, or it sees the new count. */
    if (atomic_load(&p->sleepers) > 0) syscall(SYS_futex, &p->count, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static bool reached(const struct post *p, uint32_t target)
{
    return (int32_t)(atomic_load_explicit(&p->count, memory_order_acquire) - target) >= 0;
}

/* Tells the core that this is a spin. Its length differs 4-fold between processors, so spins count time. */
static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool spin(const struct post *p, uint32_t target)
{
    int64_t end = clock_us() + SPIN_US;
    do {
        for (int i = 0; i < 16; i++) {
            if (reached(p, target)) return true;
            relax();
        }
        sched_yield();
    } while (clock_us() < end);
    return false;
}

static void await(struct post *p, uint32_t target)
{
    if (reached(p, target) || spin(p, target)) return;
    atomic_fetch_add(&p->sleepers, 1);
    for (;;) {
        uint32_t seen = atomic_load(&p->count);
        if ((int32_t)(seen - target) >= 0) break;
        /* Returns at once when the count is no longer `seen`. */
        syscall(SYS_futex, &p->count, FUTEX_WAIT, seen, NULL, NULL, 0);
    }
    atomic_fetch_sub(&p->sleepers, 1);
}

static void await_all(struct comm *c)
{
    struct shm_state *s = c->state;
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) await(&s->post[r], s->posted);
}

static void reduce_piece(struct comm *c, void *buffer, size_t n, enum dtype dtype)
{
    struct shm_state *s = c->state;
    float *slots = s->slots + (size_t)s->parity * (size_t)c->size * PIECE,
          *sums = s->sums + (size_t)s->parity * PIECE;
    size_t size = dtype_bytes(dtype), stride = PIECE * sizeof(float) / size;
    s->parity ^= 1;
    memcpy(slots + (size_t)c->rank * PIECE, buffer, n * size);
    post(s, c->rank);
    await_all(c);
    if (n <= DIRECT_MAX) {
        sum_ranks(buffer, slots, stride, c->size, 0, n, dtype);
        return;
    }
    size_t slice = (n + (size_t)c->size - 1) / (size_t)c->size, first = slice * (size_t)c->rank;
    if (first < n)
        sum_ranks((char *)sums + first * size, slots, stride, c->size, first,
                  first + slice < n ? slice : n - first, dtype);
    post(s, c->rank);
    await_all(c);
    memcpy(buffer, sums, n * size);
}

static void shm_all_reduce(struct comm *c, void *buffer, size_t n, enum dtype dtype, void *stream)
{
    (void)stream;
    for (size_t at = 0; at < n; at += PIECE)
        reduce_piece(c, (char *)buffer + at * dtype_bytes(dtype), n - at < PIECE ? n - at : PIECE, dtype);
}

static void shm_reserve(struct comm *c, size_t n_f32)
{
    (void)c; /* pieces bound the memory */
    (void)n_f32;
}

static void shm_close(struct comm *c)
{
    struct shm_state *s = c->state;
    munmap(s->map, s->map_bytes);
    free(s);
}

static const struct comm_table shm_table = {
    .reserve = shm_reserve, .all_reduce = shm_all_reduce, .gather = mpi_gather, .close = shm_close};

/* Of the object that the ranks meet at. */
static char name[64];
static atomic_bool has_name;

void shm_forget_name(void)
{
    if (atomic_exchange(&has_name, false)) shm_unlink(name);
}

/* Rank 0 makes the object, everyone maps it, and its name is gone before the first use, or when the job ends
 * before that: nothing is left behind. */
static char *map_segment(const struct comm *c, size_t bytes)
{
    int fd = -1, failed = 0;
    if (c->rank == 0) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        snprintf(name, sizeof name, "/retro-%d-%ld", getpid(), t.tv_nsec);
        atomic_store(&has_name, true);
        fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
        if (fd >= 0) failed = posix_fallocate(fd, 0, (off_t)bytes);
    }
    mpi_check(MPI_Bcast(name, sizeof name, MPI_BYTE, 0, c->mpi), "MPI_Bcast");
    atomic_store(&has_name, true);
    if (c->rank != 0) fd = shm_open(name, O_RDWR, 0600);
    char *map =
        fd >= 0 && !failed ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    int error = errno;
    if (fd >= 0) close(fd);
    int bad = map == MAP_FAILED, any = 0;
    mpi_check(MPI_Allreduce(&bad, &any, 1, MPI_INT, MPI_MAX, c->mpi), "MPI_Allreduce");
    shm_forget_name();
    if (bad)
        LOG_WARN("no shared memory of %zu MiB (%s): all-reduce goes through MPI; a larger /dev/shm makes it "
                 "faster",
                 bytes >> 20, strerror(failed ? failed : error));
    if (any && !bad) munmap(map, bytes);
    return any ? NULL : map;
}

void shm_open_group(struct comm *c)
{
    size_t posts = (size_t)c->size * sizeof(struct post), slots = 2 * (size_t)c->size * PIECE * sizeof(float);
    size_t bytes = posts + slots + 2 * PIECE * sizeof(float);
    char *map = map_segment(c, bytes);
    if (!map) {
        mpi_open(c, c->rank == 0);
        return;
    }
    struct shm_state *s = calloc(1, sizeof *s);
    if (!s) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a group of ranks");
    s->map = map;
    s->map_bytes = bytes;
    s->post = (struct post *)map;
    s->slots = (float *)(map + posts);
    s->sums = (float *)(map + posts + slots);
    c->state = s;
    c->table = &shm_table;
    snprintf(c->description, sizeof c->description, "%d ranks by shared memory", c->size);
}
