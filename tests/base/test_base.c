/* test_base.c - status texts, how a process dies, the log, the arena, CRC-32, free memory. What ends a
 * process runs in a child, whose standard error and exit code are looked at. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/base/arena.h"
#include "runtime/base/clock.h"
#include "runtime/base/crc32.h"
#include "runtime/base/die.h"
#include "runtime/base/hostmem.h"
#include "runtime/base/status.h"

static char output[8192]; /* of the last child */

/* Exit code of a child that ran f. */
static int code_of(void (*f)(void))
{
    int fds[2], status;
    assert_int_equal(pipe(fds), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        close(fds[1]);
        f();
        _exit(0);
    }
    close(fds[1]);
    size_t n = 0;
    ssize_t k;
    while ((k = read(fds[0], output + n, sizeof output - 1 - n)) > 0) n += (size_t)k;
    output[n] = 0;
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void die_with_hint(void) { DIE(EXIT_CODE_PEER, "try again", "rank %d is gone", 3); }
static void die_without_hint(void) { DIE(EXIT_CODE_MEMORY, NULL, "no memory"); }
static void die_in_lines(void) { DIE(EXIT_CODE_MODEL, "b\nc", "a\x1b[31m\r\n%s", "forged: line"); }

static void die_quiet(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    die_with_hint();
}

static void die_long(void)
{
    char text[5000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    DIE(EXIT_CODE_OPTION, text, "%s", text);
}

static void break_assertion(void)
{
    int two = 2;
    ASSERT(two == 2);
    ASSERT(two == 3);
}

static void ends_with_one_line_and_the_code(void **state)
{
    (void)state;
    assert_int_equal(code_of(die_with_hint), EXIT_CODE_PEER);
    assert_string_equal(output, "retro: error: rank 3 is gone: try again\n");
    assert_int_equal(code_of(die_quiet), EXIT_CODE_PEER);
    assert_string_equal(output, "retro: error: rank 3 is gone: try again\n");
    assert_int_equal(code_of(die_without_hint), EXIT_CODE_MEMORY);
    assert_string_equal(output, "retro: error: no memory\n");
    assert_int_equal(code_of(die_in_lines), EXIT_CODE_MODEL);
    assert_string_equal(output, "retro: error: a [31m  forged: line: b c\n");
    assert_int_equal(code_of(die_long), EXIT_CODE_OPTION);
    assert_true(strlen(output) > 1000 && strlen(output) <= 2048);
    assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);
    assert_int_equal(code_of(break_assertion), EXIT_CODE_BUG);
    assert_non_null(strstr(output, "test_base.c"));
    assert_non_null(strstr(output, "two == 3"));
}

static void leave_with_9(int code)
{
    char text[64];
    snprintf(text, sizeof text, "hook got %d\n", code);
    if (write(STDERR_FILENO, text, strlen(text)) > 0) _exit(9);
}

static void fail_again(int code)
{
    (void)code;
    DIE(EXIT_CODE_BUG, NULL, "the hook fails too");
}

static atomic_bool in_hook;

static void slow_hook(int code)
{
    atomic_store(&in_hook, true);
    usleep(300000);
    _exit(code);
}

static void die_with_hook(void)
{
    die_set_hook(leave_with_9);
    die_with_hint();
}

static void die_in_the_hook(void)
{
    die_set_hook(fail_again);
    die_with_hint();
}

static void *die_late(void *arg)
{
    (void)arg;
    while (!atomic_load(&in_hook)) usleep(1000);
    DIE(EXIT_CODE_OPTION, NULL, "second");
    return NULL;
}

static void die_in_two_threads(void)
{
    pthread_t thread;
    die_set_hook(slow_hook);
    pthread_create(&thread, NULL, die_late, NULL);
    DIE(EXIT_CODE_MEMORY, NULL, "first");
}

static void the_first_cause_decides(void **state)
{
    (void)state;
    assert_int_equal(code_of(die_with_hook), 9);
    assert_non_null(strstr(output, "hook got 5\n"));
    assert_int_not_equal(code_of(die_in_the_hook), 0);
    assert_int_equal(code_of(die_in_two_threads), EXIT_CODE_MEMORY);
}

static void log_all_levels(void)
{
    for (int level = 0; level < LOG_LEVEL_COUNT; level++) {
        log_set_level((enum log_level)level);
        LOG_ERROR("e%d", level);
        LOG_WARN("w%d", level);
        LOG_INFO("i%d", level);
        LOG_DEBUG("d%d", level);
    }
    log_set_prefix("3@node7");
    LOG_INFO("%s", "with prefix");
    char longest[200];
    memset(longest, 'p', sizeof longest);
    longest[sizeof longest - 1] = 0;
    log_set_prefix(longest);
    LOG_INFO("cut");
}

static void logs_what_the_level_lets_through(void **state)
{
    (void)state;
    assert_int_equal(code_of(log_all_levels), 0);
    static const char expected[] = "retro: error: e0\n"
                                   "retro: error: e1\nretro: warning: w1\n"
                                   "retro: error: e2\nretro: warning: w2\nretro: i2\n"
                                   "retro: error: e3\nretro: warning: w3\nretro: i3\nretro: debug: d3\n"
                                   "retro[3@node7]: with prefix\nretro[ppp";
    assert_memory_equal(output, expected, sizeof expected - 1);
    assert_non_null(strstr(output, "p]: cut\n"));
}

static void status_table(void **state)
{
    (void)state;
    static const int codes[STATUS_COUNT] = {
        [STATUS_OK] = 0,        [STATUS_BAD_OPTION] = 2,  [STATUS_BAD_MODEL] = 3, [STATUS_NO_FIT] = 4,
        [STATUS_BAD_INPUT] = 2, [STATUS_NO_PAGES] = 4,    [STATUS_TOO_LONG] = 2,  [STATUS_IO] = 2,
        [STATUS_PEER] = 5,      [STATUS_QUEUE_FULL] = 75, [STATUS_DRAINING] = 75,
    };
    for (int s = 0; s < STATUS_COUNT; s++) {
        assert_int_equal(status_exit_code((enum status)s), codes[s]);
        assert_true(strlen(status_text((enum status)s)) > 1);
    }
    struct reason why;
    assert_int_equal(status_fail(&why, STATUS_IO, "file %s: %d", "a\nb\x7f", 7), STATUS_IO);
    assert_string_equal(why.text, "file a?b?: 7");
    assert_int_equal(status_fail(NULL, STATUS_IO, "nobody asks"), STATUS_IO);
    char text[2000];
    memset(text, 'y', sizeof text);
    text[sizeof text - 1] = 0;
    status_fail(&why, STATUS_IO, "%s", text);
    assert_int_equal(strlen(why.text), sizeof why.text - 1);
}

static void crc32_values(void **state)
{
    (void)state;
    assert_int_equal(crc32_of("123456789", 9), 0xcbf43926u); /* the check value of the CRC catalogue */
    assert_int_equal(crc32_of(NULL, 0), 0);
    assert_int_equal(crc32_of("", 1), 0xd202ef8du);
    assert_int_equal(crc32_of("The quick brown fox jumps over the lazy dog", 43), 0x414fa339u);
    unsigned char bytes[256];
    for (int i = 0; i < 256; i++) bytes[i] = (unsigned char)i;
    assert_int_equal(crc32_of(bytes, 256), 0x29058c73u);
    uint32_t whole = crc32_of(bytes, 256);
    for (int bit = 0; bit < 2048; bit++) { /* any one flipped bit is seen */
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        assert_int_not_equal(crc32_of(bytes, 256), whole);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
}

static void arena_counts_what_it_carves(void **state)
{
    (void)state;
    struct arena count, real;
    arena_count(&count);
    static const size_t sizes[] = {1, 0, 255, 256, 257, 100000, 3, 4096};
    enum { N = sizeof sizes / sizeof *sizes };
    for (int i = 0; i < N; i++) assert_null(arena_carve(&count, sizes[i]));
    char *memory = aligned_alloc(ARENA_ALIGN, count.used_bytes);
    assert_non_null(memory);
    arena_wrap(&real, memory, count.used_bytes);
    char *last = NULL;
    for (int i = 0; i < N; i++) {
        char *p = arena_carve(&real, sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % ARENA_ALIGN, 0);
        if (last) assert_true(p >= last + sizes[i - 1]);
        memset(p, 0x55, sizes[i]);
        if (!last) assert_ptr_equal(p, memory);
        last = p;
    }
    assert_int_equal(real.used_bytes, count.used_bytes);
    arena_seal(&real);
    free(memory);
}

static _Alignas(256) char some_memory[1024];

static void carve_too_much(void)
{
    struct arena a;
    arena_wrap(&a, some_memory, sizeof some_memory);
    arena_carve(&a, 1000);
    arena_carve(&a, 1);
}

static void carve_after_seal(void)
{
    struct arena a;
    arena_wrap(&a, some_memory, sizeof some_memory);
    arena_seal(&a);
    arena_carve(&a, 1);
}

static void carve_huge(void)
{
    struct arena a;
    arena_wrap(&a, some_memory, sizeof some_memory);
    arena_carve(&a, SIZE_MAX - 5);
}

static void arena_refuses_our_bugs(void **state)
{
    (void)state;
    assert_int_equal(code_of(carve_too_much), EXIT_CODE_BUG);
    assert_int_equal(code_of(carve_after_seal), EXIT_CODE_BUG);
    assert_int_equal(code_of(carve_huge), EXIT_CODE_BUG);
}

static void memory_and_time(void **state)
{
    (void)state;
    int64_t available = hostmem_available(), pages = sysconf(_SC_PHYS_PAGES);
    assert_true(available > 16 << 20);
    assert_true(available <= pages * sysconf(_SC_PAGESIZE));
    int64_t begun = clock_us();
    usleep(20000);
    int64_t slept = clock_us() - begun;
    assert_true(slept >= 20000 && slept < 15000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends_with_one_line_and_the_code),
        cmocka_unit_test(the_first_cause_decides),
        cmocka_unit_test(logs_what_the_level_lets_through),
        cmocka_unit_test(status_table),
        cmocka_unit_test(crc32_values),
        cmocka_unit_test(arena_counts_what_it_carves),
        cmocka_unit_test(arena_refuses_our_bugs),
        cmocka_unit_test(memory_and_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
