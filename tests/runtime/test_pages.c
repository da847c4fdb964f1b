/* test_pages.c - blocks under random allocation, sharing and release, with a model of who holds what beside
 * them and pages_check after every operation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/base/die.h"
#include "runtime/pages.h"
#include "tests/runtime/random.h"

enum { BLOCKS_MAX = 64 };

/* The references that the test holds: held[i] of block i. */
static void compare(const struct pages *p, const int held[BLOCKS_MAX], int n)
{
    pages_check(p);
    int free = 0;
    for (int i = 0; i < n; i++) {
        assert_int_equal(p->n_refs[i], held[i]);
        free += held[i] == 0;
    }
    assert_int_equal(p->n_free, free);
}

static void random_step(struct pages *p, int held[BLOCKS_MAX], int n, struct random *r)
{
    int32_t got[BLOCKS_MAX];
    int what = random_int(r, 0, 9), block = random_int(r, 0, n - 1);
    if (what < 3) {
        int wanted = random_int(r, 0, n), n_free = p->n_free;
        memset(got, 0xff, sizeof got);
        enum status s = pages_alloc(p, wanted, got);
        assert_int_equal(s, wanted <= n_free ? STATUS_OK : STATUS_NO_PAGES);
        for (int i = 0; i < wanted && s == STATUS_OK; i++) {
            assert_in_range(got[i], 0, n - 1);
            assert_int_equal(held[got[i]], 0);
            held[got[i]] = 1;
        }
        if (s != STATUS_OK) assert_int_equal(got[0], -1); /* none at all */
    } else if (held[block] > 0 && what < 5) {
        pages_share(p, block);
        held[block]++;
    } else if (held[block] > 0) {
        pages_release(p, block);
        held[block]--;
        if (held[block] == 0) assert_int_equal(p->free_list[p->n_free - 1], block);
    }
}

static void random_sequences_keep_the_invariants(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 3, 7, 31, BLOCKS_MAX};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (uint64_t seed = 1; seed <= 5; seed++) {
            struct random r = {seed};
            struct pages p;
            int held[BLOCKS_MAX] = {0};
            pages_open(&p, sizes[s]);
            compare(&p, held, sizes[s]);
            for (int i = 0; i < 3000; i++) {
                random_step(&p, held, sizes[s], &r);
                compare(&p, held, sizes[s]);
            }
            pages_close(&p);
        }
}

static void takes_the_last_freed_first(void **state)
{
    (void)state;
    struct pages p;
    int32_t b[4], again[2];
    pages_open(&p, 4);
    assert_int_equal(pages_alloc(&p, 4, b), STATUS_OK);
    for (int i = 0; i < 4; i++) assert_int_equal(b[i], i);
    assert_int_equal(pages_alloc(&p, 1, again), STATUS_NO_PAGES);
    assert_int_equal(pages_alloc(&p, 0, again), STATUS_OK);
    pages_release(&p, 2);
    pages_release(&p, 0);
    assert_int_equal(pages_alloc(&p, 2, again), STATUS_OK);
    assert_int_equal(again[0], 0);
    assert_int_equal(again[1], 2);
    pages_check(&p);
    pages_close(&p);
}

/* Every one of these is a bug of the caller or damage, and must end the process. */
static int breaks(int how)
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0) {
        assert_int_equal(waitpid(pid, &status, 0), pid);
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
    close(STDERR_FILENO);
    struct pages p;
    int32_t b[3];
    pages_open(&p, 4);
    if (pages_alloc(&p, 3, b) != STATUS_OK) _exit(77);
    pages_release(&p, b[1]);
    switch (how) {
    case 0: break;
    case 1: pages_release(&p, b[1]); break;
    case 2: pages_share(&p, b[1]); break;
    case 3: pages_release(&p, 4); break;
    case 4: pages_release(&p, -1); break;
    case 5: p.free_list[0] = p.free_list[1]; break;
    case 6: p.free_list[0] = b[0]; break;
    case 7: p.n_refs[b[0]] = 0; break;
    case 8: p.n_refs[b[1]] = 1; break;
    case 9: p.n_free = 5; break;
    }
    pages_check(&p);
    _exit(0);
}

static void misuse_and_damage_are_noticed(void **state)
{
    (void)state;
    assert_int_equal(breaks(0), 0);
    for (int how = 1; how <= 9; how++) assert_int_equal(breaks(how), EXIT_CODE_BUG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_sequences_keep_the_invariants),
        cmocka_unit_test(takes_the_last_freed_first),
        cmocka_unit_test(misuse_and_damage_are_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
