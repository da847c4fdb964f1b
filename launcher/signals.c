#define _GNU_SOURCE
#include "launcher/signals.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <unistd.h>

#include "comm/heartbeat.h"
#include "runtime/base/clock.h"
#include "runtime/base/die.h"

/* A process has one set of signals; the handler may run on any thread, MPI's too. */
static atomic_llong first_signal; /* its time in us and, in the lowest byte, its number; 0: none came */
static int ends[2]; /* of a pipe: the handler writes, the thread reads; 0: nobody is to be told any more */
static pthread_t listener;
static bool listening;

/* timeout(1) signals its child and then the child's group, a shell and a launcher may both hand a signal on: the same
 * one again within this time is the first one's echo, and nobody asks twice so fast. */
enum { ECHO_US = 200000 };

struct listener {
    void (*first)(void *user, int signal);
    void *user;
};

static void handle(int number)
{
    unsigned char byte = (unsigned char)number;
    long long first = 0, now = clock_us();
    if (!atomic_compare_exchange_strong(&first_signal, &first, now << 8 | number)) {
        if ((first & 0xff) == number && now - (first >> 8) < ECHO_US) return;
        if (heartbeat_signal(number, true)) return; /* everyone learns why */
        _exit(128 + number);
    }
    heartbeat_signal(number, false);
    if (write(ends[1], &byte, 1) < 0) _exit(128 + number);
}

static void *listen_for_first(void *user)
{
    const struct listener *l = user;
    unsigned char byte;
    while (read(ends[0], &byte, 1) != 1) {
    }
    if (l->first && byte) l->first(l->user, byte);
    return NULL;
}

void signals_open(void (*first)(void *user, int signal), void *user)
{
    static struct listener l;
    struct sigaction a = {.sa_handler = handle, .sa_flags = SA_RESTART};
    l = (struct listener){first, user};
    if (pipe2(ends, O_CLOEXEC) != 0 || pthread_create(&listener, NULL, listen_for_first, &l) != 0)
        DIE(EXIT_CODE_MEMORY, NULL, "no thread to wait for signals");
    listening = true;
    sigemptyset(&a.sa_mask);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGUSR1, &a, NULL);
    signal(SIGPIPE, SIG_IGN); /* a client that leaves is an error of a write */
}

void signals_close(void)
{
    unsigned char none = 0;
    if (!listening) return;
    listening = false;
    if (write(ends[1], &none, 1) == 1) pthread_join(listener, NULL);
}
