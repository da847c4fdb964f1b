#include "comm/watch.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"
#include "runtime/base/progress.h"

/* GRACE_US: until the neighbours of a rank that died have told whether the kernel killed it for memory, which is
 * one interval and a bit; mpirun ends the survivors a second after a death. BUSY_FACTOR: how much longer an op
 * may take that visibly computes. BUSY_SHARE: part of one core, in percent, that counts as computing. */
enum { GRACE_US = 400000, BUSY_FACTOR = 10, BUSY_SHARE = 5, LOW_MEMORY_MIB = 256 };

void watch_open(struct watch *w, int self, int size, const struct watch_limits *limits)
{
    *w = (struct watch){.self = self, .size = size, .limits = *limits};
    w->rank = calloc((size_t)size, sizeof *w->rank);
    if (!w->rank) DIE(EXIT_CODE_MEMORY, NULL, "no memory for a table of %d ranks", size);
    for (int r = 0; r < size; r++) {
        w->rank[r].beat.deaf_to = -1;
        w->rank[r].beat.layer = -1;
    }
}

void watch_close(struct watch *w)
{
    free(w->rank);
    w->rank = NULL;
}

void watch_heard(struct watch *w, int rank, const struct beat *b, int64_t now_us)
{
    struct watch_rank *k = &w->rank[rank];
    bool same =
        k->changed_us && b->phase == k->beat.phase && b->step == k->beat.step && b->count == k->beat.count;
    k->heard_us = now_us;
    k->beat = *b;
    if (same) return;
    k->changed_us = now_us;
    k->changed_cpu = b->cpu_us;
}

const char *watch_cause_name(enum cause_kind kind)
{
    static const char *const names[CAUSE_KIND_COUNT] = {"error", "died", "signal",      "stopped", "hung",
                                                        "start", "link", "unreachable", "peer"};
    ASSERT(kind >= 0 && kind < CAUSE_KIND_COUNT);
    return names[kind];
}

void watch_place(const struct beat *b, char *text, size_t bytes)
{
    if (b->phase != PROGRESS_STEP) {
        snprintf(text, bytes, "%s", progress_phase_name((enum progress_phase)b->phase));
        return;
    }
    int n = snprintf(text, bytes, "step %llu", (unsigned long long)b->step);
    if (b->layer >= 0 && (size_t)n < bytes)
        n += snprintf(text + n, bytes - (size_t)n, ", layer %d", b->layer);
    if (b->op[0] && (size_t)n < bytes) snprintf(text + n, bytes - (size_t)n, ", %s", b->op);
}

/* ---- signs, one function each: true when there is one; fills rank, other and silent_us ---- */

static bool find_report(const struct watch *w, struct cause *c)
{
    int found = -1;
    for (int r = 0; r < w->size; r++) {
        const struct watch_report *p = &w->rank[r].report;
        if (!p->there) continue;
        enum cause_kind kind = p->signal                        ? CAUSE_SIGNAL
                               : p->exit_code == EXIT_CODE_PEER ? CAUSE_PEER
                                                                : CAUSE_ERROR;
        if (found >= 0 && kind >= c->kind) continue;
        found = r;
        c->kind = kind;
        c->rank = r;
    }
    return found >= 0;
}

static bool find_death(const struct watch *w, struct cause *c)
{
    for (int r = 0; r < w->size; r++) {
        if (!w->rank[r].lost || w->rank[r].report.there) continue;
        c->kind = CAUSE_DIED;
        c->rank = r;
        return true;
    }
    return false;
}

static int64_t silence(const struct watch *w, int rank, int64_t now_us)
{
    const struct watch_rank *k = &w->rank[rank];
    return rank == w->self || k->closed || k->lost || k->heard_us == 0 ? 0 : now_us - k->heard_us;
}

static bool same_host(const struct watch *w, int a, int b)
{
    return strcmp(w->rank[a].host, w->rank[b].host) == 0;
}

static bool find_silence(const struct watch *w, int64_t now_us, struct cause *c)
{
    int stopped = -1, gone = -1;
    for (int r = 0; r < w->size; r++) {
        if (silence(w, r, now_us) <= w->limits.silent_us) continue;
        bool here = w->rank[r].answers || same_host(w, r, w->self);
        int *which = here ? &stopped : &gone;
        if (*which < 0) *which = r;
    }
    if (stopped < 0 && gone < 0) return false;
    c->rank = stopped >= 0 ? stopped : gone;
    c->kind = stopped >= 0 ? CAUSE_STOPPED : CAUSE_UNREACHABLE;
    c->silent_us = silence(w, c->rank, now_us);
    return true;
}

/* A rank that rank 0 hears well cannot hear another one that rank 0 hears well. */
static bool find_broken_link(const struct watch *w, int64_t now_us, struct cause *c)
{
    if (w->self != 0) return false;
    for (int r = 1; r < w->size; r++) {
        int other = w->rank[r].beat.deaf_to;
        if (other < 0 || other >= w->size || w->rank[r].closed || w->rank[other].closed) continue;
        if (silence(w, r, now_us) > w->limits.silent_us / 2 || w->rank[r].lost) continue;
        if (silence(w, other, now_us) > w->limits.silent_us / 2 || w->rank[other].lost) continue;
        c->kind = CAUSE_LINK;
        c->rank = r;
        c->other = other;
        return true;
    }
    return false;
}

/* Rank `r` has not moved for `limit_us`; an op that visibly computes may take longer, a wait may not. */
static bool stands_still(const struct watch *w, int r, int64_t limit_us, int64_t now_us)
{
    const struct watch_rank *k = &w->rank[r];
    int64_t still = now_us - k->changed_us;
    if (k->closed || k->changed_us == 0 || still <= limit_us) return false;
    /* A wait may spin without working; on a GPU the host waits in download for all that it launched. */
    static const char *const wait[] = {"all_reduce", "gather", "download"};
    bool waits = false;
    for (size_t i = 0; i < sizeof wait / sizeof *wait; i++) waits |= strcmp(k->beat.op, wait[i]) == 0;
    bool computes = (k->beat.cpu_us - k->changed_cpu) * 100 > still * BUSY_SHARE;
    return waits || !computes || still > limit_us * BUSY_FACTOR;
}

/* Where a rank is in the run of steps: a finished step is beyond all of its ops. */
static uint64_t position(const struct beat *b)
{
    return b->step << 32 | (b->phase == PROGRESS_STEP ? b->count & 0xffffffffu : 0xffffffffu);
}

static bool is_held(const struct beat *b)
{
    return b->thread_state == 'T' || b->thread_state == 't' || b->thread_state == 'D';
}

/* The ones that the others wait for: the lowest phase of a start. Replicas start together. */
static bool find_late_start(const struct watch *w, int64_t now_us, struct cause *c)
{
    int lowest = PROGRESS_IDLE;
    for (int r = 0; r < w->size; r++) {
        int phase = w->rank[r].closed ? PROGRESS_CLOSE : w->rank[r].beat.phase;
        if (phase < lowest) lowest = phase;
    }
    /* Rank 0 prepares for all, the others wait for it. Nobody hurries a person. */
    bool leads = lowest == PROGRESS_PREPARE && w->rank[0].beat.phase == lowest;
    bool asks = leads && strcmp(w->rank[0].beat.op, PROGRESS_ASKS) == 0;
    if (lowest >= PROGRESS_IDLE || asks) return false;
    c->rank = -1;
    for (int r = 0; r < w->size; r++) {
        if (w->rank[r].closed || w->rank[r].beat.phase != lowest || (leads && r != 0)) continue;
        if (!stands_still(w, r, w->limits.start_us, now_us)) return false;
        if (c->rank < 0 || (is_held(&w->rank[r].beat) && !is_held(&w->rank[c->rank].beat))) c->rank = r;
    }
    c->kind = CAUSE_START;
    return c->rank >= 0;
}

static bool find_hang(const struct watch *w, int first, int64_t now_us, struct cause *c)
{
    bool active = false;
    uint64_t last = UINT64_MAX;
    for (int r = first; r < first + w->limits.group; r++) {
        const struct watch_rank *k = &w->rank[r];
        if (k->closed || k->changed_us == 0) return false;
        active |= k->beat.phase == PROGRESS_STEP;
        if (position(&k->beat) < last) last = position(&k->beat);
    }
    if (!active) return false;
    c->rank = -1;
    for (int r = first; r < first + w->limits.group; r++) {
        if (position(&w->rank[r].beat) != last) continue;
        if (!stands_still(w, r, w->limits.hung_us, now_us)) return false;
        if (c->rank < 0 || (is_held(&w->rank[r].beat) && !is_held(&w->rank[c->rank].beat))) c->rank = r;
    }
    c->kind = CAUSE_HUNG;
    return true;
}

/* Rank 0 ends in order and waits for a follower. Rank 0 itself may wait for whoever reads what it prints. */
static bool find_late_end(const struct watch *w, int64_t now_us, struct cause *c)
{
    const struct watch_rank *leader = &w->rank[0];
    if (!leader->closed && leader->beat.phase != PROGRESS_CLOSE) return false;
    for (int r = 1; r < w->size; r++) {
        if (now_us - leader->changed_us <= w->limits.hung_us) break;
        if (!stands_still(w, r, w->limits.hung_us, now_us)) continue;
        c->kind = CAUSE_HUNG;
        c->rank = r;
        return true;
    }
    return false;
}

static bool find_stillness(const struct watch *w, int64_t now_us, struct cause *c)
{
    if (w->self != 0) return false;
    for (int first = 0; first < w->size; first += w->limits.group)
        if (find_hang(w, first, now_us, c)) return true;
    return find_late_start(w, now_us, c) || find_late_end(w, now_us, c);
}

static bool find_sign(const struct watch *w, int64_t now_us, struct cause *c)
{
    struct cause other = {.other = -1}, link = {.other = -1};
    bool found = find_report(w, c);
    if (found && c->kind < CAUSE_DIED) return true;
    if (find_death(w, &other) || find_silence(w, now_us, &other) || find_stillness(w, now_us, &other) ||
        find_broken_link(w, now_us, &other)) {
        if (found && c->kind <= other.kind) return true;
        if (other.kind > CAUSE_LINK && find_broken_link(w, now_us, &link)) other = link;
        *c = other;
        return true;
    }
    return found;
}

/* ---- what is said about it ---- */

/* Ranks of the host of `rank` as text. */
static void name_ranks(const struct watch *w, int rank, char *text, size_t bytes)
{
    size_t n = 0, found = 0;
    char list[256] = "";
    for (int r = 0; r < w->size; r++) {
        if (!same_host(w, r, rank)) continue;
        found++;
        if (n + 8 < sizeof list) n += (size_t)snprintf(list + n, sizeof list - n, "%s%d", n ? "," : "", r);
    }
    snprintf(text, bytes, "rank%s %s on %s", found > 1 ? "s" : "", list, w->rank[rank].host);
}

/* Did the kernel kill it for memory? A neighbour saw the counter grow, or its own last word was that nothing is
 * left. */
static const char *memory_verdict(const struct watch *w, int rank)
{
    for (int r = 0; r < w->size; r++)
        if (r != rank && same_host(w, r, rank) && w->rank[r].beat.oom_kills > w->rank[rank].beat.oom_kills)
            return ": killed by the kernel, its host is out of memory: start more ranks, or lower "
                   "--max-context";
    if (w->rank[rank].beat.available_mib < LOW_MEMORY_MIB && w->rank[rank].heard_us)
        return ": its host had almost no memory left at its last word, the kernel may have killed it: start "
               "more ranks, or lower --max-context";
    return ": killed, or crashed: see its last lines and `dmesg` there";
}

/* How many other hosts there are, and how many of them are silent. */
static void count_hosts(const struct watch *w, int64_t now_us, int *hosts, int *silent)
{
    *hosts = *silent = 0;
    for (int r = 0; r < w->size; r++) {
        bool seen = same_host(w, r, w->self);
        for (int q = 0; q < r && !seen; q++) seen = same_host(w, r, q);
        if (seen) continue;
        ++*hosts;
        /* They fell silent within an interval of each other. */
        *silent += silence(w, r, now_us) > w->limits.silent_us - 2 * w->limits.interval_us;
    }
}

static void describe_unreachable(const struct watch *w, int64_t now_us, struct cause *c)
{
    char ranks[320], place[96];
    int hosts, silent;
    double seconds = (double)c->silent_us * 1e-6;
    count_hosts(w, now_us, &hosts, &silent);
    if (w->self == 0 && hosts > 1 && silent == hosts) {
        snprintf(c->text, sizeof c->text,
                 "host %s (rank 0) lost its network: no other host was heard for %.1f s, all since the same "
                 "moment",
                 w->rank[0].host, seconds);
        c->rank = 0;
        return;
    }
    name_ranks(w, c->rank, ranks, sizeof ranks);
    watch_place(&w->rank[c->rank].beat, place, sizeof place);
    snprintf(c->text, sizeof c->text,
             "%s cannot be reached for %.1f s (last seen in %s): host %s is down or lost its network", ranks,
             seconds, place, w->rank[c->rank].host);
}

static void describe_hang(const struct watch *w, int64_t now_us, struct cause *c)
{
    const struct watch_rank *k = &w->rank[c->rank];
    char place[96], state[96] = "";
    watch_place(&k->beat, place, sizeof place);
    if (is_held(&k->beat))
        snprintf(state, sizeof state, "; its main thread is %s",
                 k->beat.thread_state == 'D' ? "in an uninterruptible wait (disk, file system)" : "stopped");
    bool others_too = false;
    for (int r = c->rank / w->limits.group * w->limits.group, n = 0; n < w->limits.group; n++, r++)
        others_too |= r != c->rank && position(&w->rank[r].beat) == position(&k->beat);
    const char *waiting = k->beat.phase == PROGRESS_STEP && others_too && !is_held(&k->beat)
                              ? "; every rank waits there: a collective does not finish"
                              : "; the others wait for it";
    snprintf(c->text, sizeof c->text, "rank %d on %s made no progress in %s for %.1f s%s%s", c->rank, k->host,
             place, (double)(now_us - k->changed_us) * 1e-6, state, waiting);
}

static void describe(const struct watch *w, int64_t now_us, struct cause *c)
{
    const struct watch_rank *k = &w->rank[c->rank];
    char place[96];
    watch_place(&k->beat, place, sizeof place);
    c->exit_code = EXIT_CODE_PEER;
    switch (c->kind) {
    case CAUSE_ERROR:
    case CAUSE_PEER:
        c->exit_code = k->report.exit_code;
        snprintf(c->text, sizeof c->text, "rank %d on %s ended in %s: %s", c->rank, k->host, place,
                 k->report.text);
        break;
    case CAUSE_SIGNAL:
        c->exit_code = k->report.exit_code;
        snprintf(c->text, sizeof c->text, "rank %d on %s was ended by signal %d (%s) in %s", c->rank, k->host,
                 k->report.signal, strsignal(k->report.signal), place);
        break;
    case CAUSE_DIED:
        snprintf(c->text, sizeof c->text, "rank %d on %s died in %s%s", c->rank, k->host, place,
                 memory_verdict(w, c->rank));
        break;
    case CAUSE_STOPPED:
        snprintf(c->text, sizeof c->text,
                 "rank %d on %s does not respond for %.1f s (last seen in %s) although its host does: the "
                 "process is stopped or starved",
                 c->rank, k->host, (double)c->silent_us * 1e-6, place);
        break;
    case CAUSE_HUNG:
    case CAUSE_START: describe_hang(w, now_us, c); break;
    case CAUSE_LINK:
        snprintf(c->text, sizeof c->text,
                 "rank %d on %s and rank %d on %s do not hear each other although rank 0 hears both (in %s): "
                 "the link between these hosts is broken",
                 c->rank, k->host, c->other, w->rank[c->other].host, place);
        break;
    case CAUSE_UNREACHABLE: describe_unreachable(w, now_us, c); break;
    case CAUSE_KIND_COUNT: ASSERT(!"kind");
    }
    c->beat = w->rank[c->rank].beat;
    snprintf(c->host, sizeof c->host, "%s", w->rank[c->rank].host);
}

bool watch_decide(struct watch *w, int64_t now_us, struct cause *c)
{
    *c = (struct cause){.other = -1};
    if (!find_sign(w, now_us, c)) {
        w->suspected_us = 0;
        return false;
    }
    if (w->suspected_us == 0) w->suspected_us = now_us;
    if (now_us - w->suspected_us < GRACE_US) return false;
    describe(w, now_us, c);
    return true;
}
