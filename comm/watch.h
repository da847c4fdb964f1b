/* watch.h - what the ranks of a job last told, and the one decision over it: is the job lost, and who began?
 *
 * Integers and text only, no sockets and no clock: heartbeat.c feeds it, tests feed it too. One table row a
 * rank. Rank 0's table holds what every rank told it; a follower's holds rank 0 alone, and is only asked when
 * rank 0 itself may be the one that is gone.
 *
 * A cause is not told at once: for GRACE_US after the first sign other signs may arrive, and the strongest
 * wins, whatever came first over the wire. That a rank died is a stronger sign than that another rank's
 * collective failed, which is what follows from it. */
#ifndef RETRO_COMM_WATCH_H
#define RETRO_COMM_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Strongest first. */
enum cause_kind {
    CAUSE_ERROR,       /* a rank ended itself and said why */
    CAUSE_DIED,        /* its process is gone without a word */
    CAUSE_SIGNAL,      /* a rank was asked to end; a launcher asks the others when one has died */
    CAUSE_STOPPED,     /* its process says nothing, its host answers */
    CAUSE_HUNG,        /* no progress in a step */
    CAUSE_START,       /* no progress while starting */
    CAUSE_LINK,        /* two ranks that rank 0 hears do not hear each other */
    CAUSE_UNREACHABLE, /* nothing comes from its host */
    CAUSE_PEER,        /* a rank noticed that something else had failed */
    CAUSE_KIND_COUNT
};

/* What a rank tells with every beat. */
struct beat {
    int32_t phase, layer; /* enum progress_phase; layer -1: not in one */
    uint64_t step, count;
    char op[24];
    int64_t cpu_us;        /* of the whole process since it began */
    int64_t allreduce_us;  /* in all-reduces on the host since it began */
    int64_t available_mib; /* memory that its host has left */
    int64_t oom_kills;     /* processes that the kernel killed for memory, on its host, since it began */
    int32_t thread_state;  /* of the main thread as in /proc/PID/stat: R S D T t */
    int32_t deaf_to;       /* a rank of another host that it does not hear any more, or -1 */
};

enum { WATCH_TEXT_BYTES = 512 };

struct watch_report { /* a rank's own last words */
    bool there;
    int exit_code, signal; /* signal 0: an error */
    char text[WATCH_TEXT_BYTES];
};

struct watch_rank {
    char host[64];
    bool closed;         /* ended in order */
    bool lost;           /* its connection ended although it had not closed */
    bool answers;        /* its host took all that was sent to it */
    int64_t heard_us;    /* when the last beat came */
    int64_t changed_us;  /* when phase, step or count last changed ... */
    int64_t changed_cpu; /* ... and its cpu_us then */
    struct beat beat;
    struct watch_report report;
};

struct watch_limits {
    int64_t silent_us;   /* without a beat: stopped or unreachable */
    int64_t hung_us;     /* without progress in a step */
    int64_t start_us;    /* without progress while starting */
    int64_t interval_us; /* between two beats */
    int group;           /* ranks of a replica: they run the same steps; all ranks start together */
};

struct watch {
    int self, size;
    struct watch_limits limits;
    struct watch_rank *rank; /* (size) */
    int64_t suspected_us;    /* first sign; 0 for none */
};

struct cause {
    enum cause_kind kind;
    int rank;  /* who began; for LINK one of two */
    int other; /* LINK: the other one; else -1 */
    int exit_code;
    int64_t silent_us;         /* UNREACHABLE and STOPPED: since when */
    struct beat beat;          /* the rank's last word */
    char host[64], text[1024]; /* a sentence that names rank, host, phase, layer, op and error */
};

void watch_open(struct watch *w, int self, int size, const struct watch_limits *limits);
void watch_close(struct watch *w);

/* A beat of `rank` came. */
void watch_heard(struct watch *w, int rank, const struct beat *b, int64_t now_us);
/* True when the job is lost; fills `c`. Call again and again with a growing now_us. */
bool watch_decide(struct watch *w, int64_t now_us, struct cause *c);

const char *watch_cause_name(enum cause_kind kind);
/* "step 57, layer 12, attend" or "load_weights" */
void watch_place(const struct beat *b, char *text, size_t bytes);

#endif
