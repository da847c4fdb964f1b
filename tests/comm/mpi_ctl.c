/* mpi_ctl.c - the control channel between any number of ranks.
 *
 * Without arguments: what must work. With one argument a failure is made and the job must end at once on
 * every rank (tests/suites/mpi looks at how): kill-follower   the last rank is killed while rank 0 keeps
 * sending kill-leader     rank 0 is killed while the others wait damaged         one bit of a payload is
 * flipped on its way no-frame        bytes that are no frame too-long        a head that announces more than
 * a frame may hold cut             rank 0 closes its end inside a frame missing         the last rank does
 * not come */
#define _GNU_SOURCE
#include "tests/comm/check.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "comm/ctl.h"
#include "runtime/base/clock.h"
#include "runtime/base/crc32.h"

enum { FDS_MAX = 1024 };

static struct comm_world world;
static struct comm *group;

static void pause_ms(int ms) { usleep((useconds_t)ms * 1000); }

static unsigned char byte_of(uint32_t frame, size_t i)
{
    return (unsigned char)((i * 2654435761u + frame * 40503u) >> 8);
}

static unsigned char *payload(uint32_t frame, size_t n)
{
    unsigned char *p = malloc(n + 1);
    CHECK(p, "no memory");
    for (size_t i = 0; i < n; i++) p[i] = byte_of(frame, i);
    return p;
}

static void expect_frame(struct ctl *x, uint32_t kind, uint32_t frame, size_t n)
{
    uint32_t got_kind;
    const void *bytes;
    size_t got;
    CHECK(ctl_receive(x, &got_kind, &bytes, &got), "frame %u: the channel closed", frame);
    CHECK(got_kind == kind && got == n, "frame %u: kind %u, %zu bytes", frame, got_kind, got);
    for (size_t i = 0; i < n; i++)
        CHECK(((const unsigned char *)bytes)[i] == byte_of(frame, i), "frame %u: byte %zu", frame, i);
}

static void expect_close(struct ctl *x)
{
    uint32_t kind;
    const void *bytes;
    size_t n;
    if (world.rank != 0) CHECK(!ctl_receive(x, &kind, &bytes, &n), "a frame after the last one");
    ctl_close(x);
}

/* Sizes around the ends of socket buffers and up to the limit, sent without waiting: order and borders must
 * hold. */
static void frames_of_many_sizes(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,     1,       2,       7,      64,           0, 4095,    4096,    65535,
                                   65536, 100001,  212992,  212993, 1 << 20,      3, 5 << 20, 1 << 16, 0,
                                   17,    9999999, 1234567, 1,      CTL_FRAME_MAX};
    enum { N = sizeof sizes / sizeof *sizes };
    struct ctl *x = ctl_open(group, 30);
    for (uint32_t i = 0; i < N; i++) {
        if (world.rank != 0) {
            expect_frame(x, i + 1, i, sizes[i]);
            continue;
        }
        unsigned char *p = payload(i, sizes[i]);
        ctl_send(x, i + 1, sizes[i] ? p : NULL, sizes[i]);
        free(p);
    }
    if (world.rank == 0) ctl_close(x);
    else expect_close(x);
}

/* Bursts and pauses, followers of different speed. */
static void frames_in_order(void **state)
{
    (void)state;
    struct ctl *x = ctl_open(group, 30);
    for (uint32_t i = 0; i < 3000; i++) {
        size_t n = i * 7919u % 3001;
        if (world.rank == 0) {
            unsigned char *p = payload(i, n);
            ctl_send(x, i % 5 + 1, p, n);
            free(p);
            if (i % 500 == 499) pause_ms(3);
        } else {
            expect_frame(x, i % 5 + 1, i, n);
            if (i % 300 == (uint32_t)world.rank) pause_ms(2);
        }
    }
    if (world.rank == 0) ctl_close(x);
    else expect_close(x);
}

static void waiting_sleeps(void **state)
{
    (void)state;
    struct ctl *x = ctl_open(group, 30);
    int64_t cpu0 = 0, wall0 = 0, cpu1 = 0, wall1 = 0;
    /* Frames at once first, so that the follower is in the habit of spinning. */
    for (uint32_t i = 0; i < 50; i++) {
        if (world.rank == 0) ctl_send(x, 1, "", 0);
        else expect_frame(x, 1, i, 0);
    }
    ctl_wait_times(x, &cpu0, &wall0);
    for (uint32_t i = 0; i < 3; i++) {
        if (world.rank == 0) {
            pause_ms(1000);
            ctl_send(x, 2, "", 0);
        } else {
            expect_frame(x, 2, i, 0);
        }
    }
    ctl_wait_times(x, &cpu1, &wall1);
    if (world.rank != 0) {
        double share = (double)(cpu1 - cpu0) / (double)(wall1 - wall0);
        CHECK(wall1 - wall0 > 1000000, "waited only %lld us", (long long)(wall1 - wall0));
        CHECK(share < 0.05, "a waiting rank burns %.1f %% of a core", 100 * share);
        printf("rank %d: %.3f %% CPU while waiting\n", world.rank, 100 * share);
    }
    if (world.rank == 0) ctl_close(x);
    else expect_close(x);
}

/* Time from send to receive on the leader's clock, there and back over a collective; for a reader. */
static void latency(void **state)
{
    (void)state;
    struct ctl *x = ctl_open(group, 30);
    enum { N = 500 };
    int64_t begun = clock_us();
    for (uint32_t i = 0; i < N; i++) {
        if (world.rank == 0) ctl_send(x, 1, "abcdefgh", 8);
        uint32_t kind;
        const void *bytes;
        size_t n;
        if (world.rank != 0) CHECK(ctl_receive(x, &kind, &bytes, &n) && n == 8, "frame %u", i);
        comm_barrier(group);
    }
    if (world.rank == 0)
        printf("%d ranks: %.1f us a frame and barrier\n", world.size, (double)(clock_us() - begun) / N);
    if (world.rank == 0) ctl_close(x);
    else expect_close(x);
}

/* A conversation with one follower: question i of i bytes, then answers of its own size. */
struct conversation {
    struct ctl *x;
    int rank;
};

enum { QUESTIONS = 400, ANSWERS = 3 };

static size_t answer_bytes(int rank, uint32_t question, uint32_t answer)
{
    return question % 97 == 0 ? (size_t)1 << 20
                              : (size_t)(question * 31 + answer * 1009) % 5000 + (size_t)rank;
}

static void *converse(void *user)
{
    struct conversation *c = user;
    for (uint32_t i = 0; i < QUESTIONS; i++) {
        unsigned char *p = payload(i, i);
        ctl_send_to(c->x, c->rank, i + 1, p, i);
        free(p);
        for (uint32_t a = 0; a < ANSWERS; a++) {
            uint32_t kind;
            const void *bytes;
            size_t n;
            ctl_receive_from(c->x, c->rank, &kind, &bytes, &n);
            CHECK(kind == i * ANSWERS + a + 1 && n == answer_bytes(c->rank, i, a), "rank %d, answer %u to %u",
                  c->rank, a, i);
            for (size_t k = 0; k < n; k += 1 + n / 100)
                CHECK(((const unsigned char *)bytes)[k] == byte_of(i + a, k),
                      "rank %d, answer %u to %u, byte %zu", c->rank, a, i, k);
        }
    }
    return NULL;
}

/* Rank 0 asks every follower from a thread of its own, all at once; frames to all go before and after. */
static void answers(void **state)
{
    (void)state;
    struct ctl *x = ctl_open(group, 30);
    if (world.rank == 0) {
        pthread_t thread[64];
        struct conversation c[64];
        CHECK(world.size <= 64, "too many ranks");
        ctl_send(x, 7, "all", 3);
        for (int r = 1; r < world.size; r++) {
            c[r] = (struct conversation){x, r};
            CHECK(pthread_create(&thread[r], NULL, converse, &c[r]) == 0, "no thread");
        }
        for (int r = 1; r < world.size; r++) pthread_join(thread[r], NULL);
        ctl_send(x, 8, "all", 3);
        ctl_close(x);
        return;
    }
    uint32_t kind;
    const void *bytes;
    size_t n;
    CHECK(ctl_receive(x, &kind, &bytes, &n) && kind == 7 && n == 3, "the frame to all");
    for (uint32_t i = 0; i < QUESTIONS; i++) {
        expect_frame(x, i + 1, i, i);
        for (uint32_t a = 0; a < ANSWERS; a++) {
            size_t size = answer_bytes(world.rank, i, a);
            unsigned char *p = payload(i + a, size);
            ctl_reply(x, i * ANSWERS + a + 1, p, size);
            free(p);
        }
    }
    CHECK(ctl_receive(x, &kind, &bytes, &n) && kind == 8 && n == 3, "the last frame to all");
    expect_close(x);
}

static void opens_again(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 20; i++) {
        struct ctl *x = ctl_open(group, 30);
        if (world.rank == 0) ctl_send(x, 9, "", 0);
        else expect_frame(x, 9, 0, 0);
        if (world.rank == 0) ctl_close(x);
        else expect_close(x);
    }
}

/* ---- strangers */

/* A connected socket that must be dropped by the other side; takes it. */
static void expect_dropped(int fd, const char *what)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK(poll(&p, 1, 20000) == 1, "%s is still connected", what);
    char byte;
    ssize_t n = recv(fd, &byte, 1, 0);
    CHECK(n == 0 || (n < 0 && errno == ECONNRESET), "%s got an answer", what);
    close(fd);
}

static int connect_unix(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memcpy(a.sun_path + 1, name, strlen(name));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
    CHECK(connect(fd, (struct sockaddr *)&a, n) == 0, "connect to @%s: %s", name, strerror(errno));
    return fd;
}

/* The abstract name that rank 0 listens on, from the kernel's table. */
static bool find_unix_name(int pid, char name[64])
{
    char line[512], start[32];
    snprintf(start, sizeof start, "@retro-ctl-%d-", pid);
    FILE *f = fopen("/proc/net/unix", "r");
    CHECK(f, "/proc/net/unix");
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        char *at = strstr(line, start);
        found = at != NULL;
        if (found) snprintf(name, 64, "%.*s", (int)strcspn(at + 1, "\n"), at + 1);
    }
    fclose(f);
    return found;
}

/* Does a descriptor of process `pid` have this socket inode? */
static bool owns_socket(int pid, unsigned long inode)
{
    char dir[64], wanted[64], path[512], target[128];
    snprintf(dir, sizeof dir, "/proc/%d/fd", pid);
    snprintf(wanted, sizeof wanted, "socket:[%lu]", inode);
    DIR *d = opendir(dir);
    bool found = false;
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        found = n > 0 && (size_t)n == strlen(wanted) && memcmp(target, wanted, (size_t)n) == 0;
    }
    if (d) closedir(d);
    return found;
}

/* TCP ports on which process `pid` listens on every address. */
static int find_ports(int pid, unsigned ports[8])
{
    char line[512];
    int n = 0;
    FILE *f = fopen("/proc/net/tcp", "r");
    CHECK(f, "/proc/net/tcp");
    while (n < 8 && fgets(line, sizeof line, f)) {
        unsigned address, port, state;
        unsigned long inode;
        if (sscanf(line, " %*d: %x:%x %*x:%*x %x %*s %*s %*s %*d %*d %lu", &address, &port, &state, &inode) ==
                4 &&
            state == 10 && address == 0 && owns_socket(pid, inode))
            ports[n++] = port;
    }
    fclose(f);
    return n;
}

static int connect_tcp(unsigned port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)&a, sizeof a) == 0, "connect to port %u: %s", port, strerror(errno));
    return fd;
}

static void be_strange(int pid)
{
    char name[64];
    unsigned char bytes[100] = {0};
    bool found = false;
    for (int i = 0; i < 3000 && !(found = find_unix_name(pid, name)); i++) pause_ms(10);
    CHECK(found, "rank 0 does not listen");
    int silent = connect_unix(name);
    int wrong = connect_unix(name);
    CHECK(write(wrong, bytes, 36) == 36, "write");
    int brief = connect_unix(name);
    CHECK(write(brief, bytes, 5) == 5, "write");
    close(brief);
    int gone = connect_unix(name);
    close(gone);
    expect_dropped(silent, "a silent stranger");
    expect_dropped(wrong, "a stranger with a wrong key");
    unsigned ports[8];
    int n = find_ports(pid, ports); /* MPI itself may listen on others */
    CHECK(n > 0, "rank 0 has no TCP port");
    for (int i = 0; i < n; i++) {
        int fd = connect_tcp(ports[i]);
        memset(bytes, 0x41, sizeof bytes);
        if (send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) < 0)
            CHECK(errno == EPIPE || errno == ECONNRESET, "send");
        close(fd);
    }
}

/* The last rank comes late, after having tried the doors without the key. The channel must work as ever. */
static void strangers_are_dropped(void **state)
{
    (void)state;
    int pid = getpid();
    comm_bcast(group, &pid, sizeof pid);
    if (world.size > 1 && world.rank == world.size - 1) be_strange(pid);
    struct ctl *x = ctl_open(group, 120);
    for (uint32_t i = 0; i < 3; i++) {
        unsigned char *p = payload(i, 5000);
        if (world.rank == 0) ctl_send(x, 4, p, 5000);
        else expect_frame(x, 4, i, 5000);
        free(p);
    }
    if (world.rank == 0) ctl_close(x);
    else expect_close(x);
}

static void one_rank_has_no_peers(void **state)
{
    (void)state;
    struct comm_world alone = {.size = 1, .node_size = 1};
    struct comm *c = comm_open(&alone, 1);
    struct ctl *x = ctl_open(c, 1);
    ctl_send(x, 1, "abc", 3);
    ctl_close(x);
    ctl_close(NULL);
    comm_close(c);
}

/* ---- failures on purpose */

static bool is_socket(int fd)
{
    struct stat s;
    return fstat(fd, &s) == 0 && S_ISSOCK(s.st_mode);
}

/* Rank 0's end of a connection: the sockets that ctl_open added. Writes bytes there behind the channel's
 * back. */
static void write_behind(const bool before[FDS_MAX], const void *bytes, size_t n)
{
    for (int fd = 0; fd < FDS_MAX; fd++)
        if (!before[fd] && is_socket(fd)) CHECK(send(fd, bytes, n, MSG_NOSIGNAL) == (ssize_t)n, "send");
}

struct head { /* as comm/ctl.h describes a frame */
    uint32_t magic, kind;
    uint64_t n_bytes;
    uint32_t crc, zero;
};

static void break_frames(const char *how, const bool before[FDS_MAX])
{
    struct {
        struct head head;
        char text[8];
    } frame = {{0x4f525452u, 3, 8, crc32_of("payload", 8), 0}, "payload"};
    if (strcmp(how, "damaged") == 0) frame.text[3] ^= 4;
    if (strcmp(how, "no-frame") == 0) frame.head.magic ^= 1;
    if (strcmp(how, "too-long") == 0) frame.head.n_bytes = CTL_FRAME_MAX + 1;
    write_behind(before, &frame, strcmp(how, "cut") == 0 ? sizeof frame - 3 : sizeof frame);
    for (int fd = 0; fd < FDS_MAX && strcmp(how, "cut") == 0; fd++)
        if (!before[fd] && is_socket(fd)) shutdown(fd, SHUT_WR);
}

/* Never returns in order: every rank must be ended from outside or by its own finding within a minute. */
static int break_job(const char *how)
{
    bool before[FDS_MAX];
    for (int fd = 0; fd < FDS_MAX; fd++) before[fd] = is_socket(fd);
    bool last = world.rank == world.size - 1;
    if (strcmp(how, "missing") == 0 && last) pause_ms(60000);
    struct ctl *x = ctl_open(group, strcmp(how, "missing") == 0 ? 2 : 30);
    for (int i = 0; i < 20; i++) { /* a channel that works, first */
        if (world.rank == 0) ctl_send(x, 1, "abc", 3);
        uint32_t kind;
        const void *bytes;
        size_t n;
        if (world.rank != 0) CHECK(ctl_receive(x, &kind, &bytes, &n), "closed");
    }
    if (world.rank == 0) fprintf(stderr, "failing now\n");
    if (world.rank == 0) pause_ms(300);
    if (strcmp(how, "kill-follower") == 0 && last) raise(SIGKILL);
    if (strcmp(how, "kill-leader") == 0 && world.rank == 0) raise(SIGKILL);
    if (world.rank == 0) {
        bool kill = strncmp(how, "kill-", 5) == 0;
        if (!kill) break_frames(how, before);
        for (int i = 0; i < 600; i++) {
            pause_ms(100);
            if (kill) ctl_send(x, 1, "abc", 3);
        }
    } else {
        uint32_t kind;
        const void *bytes;
        size_t n;
        while (ctl_receive(x, &kind, &bytes, &n)) {
        }
    }
    fprintf(stderr, "rank %d was not ended\n", world.rank);
    return 99;
}

int main(int argc, char **argv)
{
    comm_world_open(&world, true);
    if (world.size > 1) die_set_hook(comm_world_abort);
    char prefix[16];
    snprintf(prefix, sizeof prefix, "%d", world.rank);
    log_set_prefix(prefix);
    group = comm_open(&world, world.size);
    if (argc > 1) return break_job(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_of_many_sizes),  cmocka_unit_test(frames_in_order),
        cmocka_unit_test(waiting_sleeps),        cmocka_unit_test(latency),
        cmocka_unit_test(opens_again),           cmocka_unit_test(strangers_are_dropped),
        cmocka_unit_test(one_rank_has_no_peers), cmocka_unit_test(answers),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_close(group);
    comm_world_close();
    return failed;
}
