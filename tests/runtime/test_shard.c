/* test_shard.c - every split of every head count, checked by owner maps written here and not by shard.c's
 * formulas. */
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

#include "runtime/base/die.h"
#include "runtime/shard.h"

#define HEADS_MAX 128

/* Marks [first, first+count) in `owners`, which has n entries, failing on a second owner or a range outside.
 */
static void claim(int *owners, int n, int first, int count, int rank)
{
    assert_true(first >= 0 && count >= 0 && first + count <= n);
    for (int i = first; i < first + count; i++) {
        assert_int_equal(owners[i], -1);
        owners[i] = rank;
    }
}

/* Invariant 1: one owner each, and owners never decrease along the indices, so that ranges of ranks ascend.
 */
static void assert_owned_in_order(const int *owners, int n)
{
    for (int i = 0; i < n; i++) {
        assert_int_not_equal(owners[i], -1);
        if (i) assert_true(owners[i] >= owners[i - 1]);
    }
}

static void clear_owners(int *owners, int n)
{
    for (int i = 0; i < n; i++) owners[i] = -1;
}

static void check_heads(int n_ranks, int n_heads, int n_kv)
{
    static int head_owner[HEADS_MAX], kv_counted[HEADS_MAX], kv_last_rank[HEADS_MAX];
    int group = n_heads / n_kv, heads_least = n_heads, heads_most = 0, kv_least = n_kv, kv_most = 0;
    clear_owners(head_owner, n_heads);
    clear_owners(kv_counted, n_kv);
    clear_owners(kv_last_rank, n_kv);
    for (int rank = 0; rank < n_ranks; rank++) {
        struct shard s;
        shard_make(&s, rank, n_ranks, n_heads, n_kv, 1000, 999);
        assert_int_equal(s.rank, rank);
        assert_int_equal(s.n_ranks, n_ranks);
        claim(head_owner, n_heads, s.head_first, s.n_heads, rank);
        assert_true(s.n_heads >= 1 && s.n_kv >= 1);
        if (s.kv_owner) claim(kv_counted, n_kv, s.kv_first, s.n_kv, rank);
        /* Every owned query head's kv head is held here, and scored with its whole group. */
        for (int h = s.head_first; h < s.head_first + s.n_heads; h++) {
            assert_in_range(h / group, s.kv_first, s.kv_first + s.n_kv - 1);
            for (int g = h / group * group; g < (h / group + 1) * group; g++)
                assert_in_range(g, s.score_first, s.score_first + s.n_score - 1);
        }
        assert_int_equal(s.n_score, s.n_kv * group);
        for (int kv = s.kv_first; kv < s.kv_first + s.n_kv; kv++) {
            assert_true(kv_last_rank[kv] == -1 || kv_last_rank[kv] == rank - 1); /* neighbours */
            assert_true((kv_last_rank[kv] == -1) == s.kv_owner); /* the first of the run counts, no other */
            kv_last_rank[kv] = rank;
        }
        if (n_ranks <= n_kv) {
            assert_true(s.kv_owner);
            assert_int_equal(s.head_first, s.score_first);
            assert_int_equal(s.n_heads, s.n_score);
        } else {
            assert_int_equal(s.n_kv, 1);
        }
        if (s.n_heads < heads_least) heads_least = s.n_heads;
        if (s.n_heads > heads_most) heads_most = s.n_heads;
        if (s.n_kv < kv_least) kv_least = s.n_kv;
        if (s.n_kv > kv_most) kv_most = s.n_kv;
    }
    assert_owned_in_order(head_owner, n_heads);
    assert_owned_in_order(kv_counted, n_kv);
    if (n_ranks <= n_kv) {
        assert_true(kv_most - kv_least <= 1);
    } else { /* no rank is asked for more than the fewest ranks of any run would give it */
        int run_least = n_ranks / n_kv;
        assert_true(heads_most <= (group + run_least - 1) / run_least);
    }
    shard_check(n_ranks, n_heads, n_kv, 1000, 999);
}

static void test_every_head_count(void **state)
{
    (void)state;
    int n_cases = 0;
    for (int n_heads = 1; n_heads <= 64; n_heads++)
        for (int n_kv = 1; n_kv <= n_heads; n_kv++)
            for (int n_ranks = 1; n_heads % n_kv == 0 && n_ranks <= n_heads; n_ranks++, n_cases++)
                check_heads(n_ranks, n_heads, n_kv);
    assert_int_equal(n_cases, 10096); /* sum over H of H times its number of divisors: nothing was skipped */
}

static void test_large_models(void **state)
{
    (void)state;
    for (int n_ranks = 1; n_ranks <= 64; n_ranks++) check_heads(n_ranks, 64, 8); /* Llama 70B, Qwen2.5 72B */
    for (int n_ranks = 1; n_ranks <= 128; n_ranks++) check_heads(n_ranks, 128, 8); /* Llama 405B */
    for (int n_ranks = 1; n_ranks <= 128; n_ranks++) shard_check(n_ranks, 128, 8, 53248, 128256);
}

/* The published shapes, with the answers worked out by hand. */
static void test_known_splits(void **state)
{
    (void)state;
    struct shard s;
    shard_make(&s, 0, 2, 9, 3, 1536, 49152); /* SmolLM2-135M on two ranks: uneven */
    assert_int_equal(s.n_kv, 2);
    assert_int_equal(s.n_heads, 6);
    assert_int_equal(s.n_ffn, 768);
    shard_make(&s, 1, 2, 9, 3, 1536, 49152);
    assert_int_equal(s.kv_first, 2);
    assert_int_equal(s.n_kv, 1);
    assert_int_equal(s.head_first, 6);
    assert_int_equal(s.n_heads, 3);
    assert_int_equal(s.vocab_first, 24576);
    shard_make(&s, 5, 16, 64, 8, 28672, 128256); /* 70B on 16: two ranks a kv head, the second is no owner */
    assert_int_equal(s.kv_first, 2);
    assert_false(s.kv_owner);
    assert_int_equal(s.score_first, 16);
    assert_int_equal(s.n_score, 8);
    assert_int_equal(s.head_first, 20);
    assert_int_equal(s.n_heads, 4);
    shard_make(&s, 4, 5, 9, 3, 1536, 49152); /* runs of 2, 2 and 1 ranks over three groups of 3 */
    assert_int_equal(s.kv_first, 2);
    assert_true(s.kv_owner);
    assert_int_equal(s.n_heads, 3);
    shard_make(&s, 1, 5, 9, 3, 1536, 49152);
    assert_int_equal(s.head_first, 2);
    assert_int_equal(s.n_heads, 1);
}

static void test_deal(void **state)
{
    (void)state;
    static int owners[300];
    for (int n = 0; n <= 300; n += n < 70 ? 1 : 23)
        for (int n_ranks = 1; n_ranks <= 67; n_ranks++) {
            clear_owners(owners, n);
            int least = n, most = 0;
            for (int rank = 0; rank < n_ranks; rank++) {
                int first, count;
                shard_deal(n, n_ranks, rank, &first, &count);
                claim(owners, n, first, count, rank);
                if (count < least) least = count;
                if (count > most) most = count;
                assert_int_equal(count, n / n_ranks + (rank < n % n_ranks)); /* first ranks take one more */
            }
            assert_owned_in_order(owners, n);
            assert_true(most - least <= 1);
        }
    int first, count;
    shard_deal(2147483647, 2147483647, 2147483646, &first, &count); /* no product overflows */
    assert_int_equal(first, 2147483646);
    assert_int_equal(count, 1);
}

/* Exit code of a child that makes the given shard: what must be refused is refused, by ASSERT. */
static int exit_code_of(int rank, int n_ranks, int n_heads, int n_kv)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct shard s;
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        shard_make(&s, rank, n_ranks, n_heads, n_kv, 10, 10);
        _exit(0);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    return WIFEXITED(how) ? WEXITSTATUS(how) : -1;
}

static void test_refuses(void **state)
{
    (void)state;
    assert_int_equal(exit_code_of(0, 1, 9, 3), 0);
    assert_int_equal(exit_code_of(0, 10, 9, 3), EXIT_CODE_BUG); /* more ranks than query heads */
    assert_int_equal(exit_code_of(0, 1, 9, 2), EXIT_CODE_BUG);
    assert_int_equal(exit_code_of(0, 0, 9, 3), EXIT_CODE_BUG);
    assert_int_equal(exit_code_of(3, 3, 9, 3), EXIT_CODE_BUG);
    assert_int_equal(exit_code_of(-1, 3, 9, 3), EXIT_CODE_BUG);
    assert_int_equal(exit_code_of(0, 1, 0, 0), EXIT_CODE_BUG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_head_count), cmocka_unit_test(test_large_models),
        cmocka_unit_test(test_known_splits),     cmocka_unit_test(test_deal),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
