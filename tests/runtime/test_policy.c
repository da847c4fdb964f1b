/* test_policy.c - how many pages, which rows: against docs/algorithm.md in exact integers, and counted by hand.
 *
 * k = max(3, ceil(b * pages)); the rows of a step are max(first, p-w+1) .. p; all pages are read while k >=
 * pages. */
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "runtime/policy.h"

static struct policy retro(double budget, int window)
{
    return (struct policy){.kind = POLICY_RETRO,
                           .window = window,
                           .kv_budget = budget,
                           .dense_layers = 2,
                           .score_alpha = 0.2f,
                           .score_group = SCORE_GROUP_SOFTMAX,
                           .sink_pages = 1};
}

/* ceil(hundredths/100 * pages) without floating point. Where the product is whole, doubles may land a hair
 * above it (0.07 * 100), and one page more is then read; nowhere else may they differ. */
static void select_count_is_the_budget(void **state)
{
    (void)state;
    for (int hundredths = 1; hundredths <= 100; hundredths++)
        for (int pages = 1; pages <= 3000; pages++) {
            struct policy p = retro(hundredths / 100.0, 2);
            int wanted = (hundredths * pages + 99) / 100, k = wanted < 3 ? 3 : wanted;
            int got = policy_select_count(&p, pages, 16), expected = k >= pages ? 0 : k;
            if (got == expected) continue;
            int hair = hundredths * pages % 100 == 0 ? k + 1 : k;
            if (got != (hair >= pages ? 0 : hair)) fail_msg("%d/100 of %d pages: %d", hundredths, pages, got);
        }
    /* What the paper and the defaults use. */
    static const int of_015[][2] = {{1, 0},  {3, 0},  {4, 3},    {20, 3},  {21, 4},
                                    {40, 6}, {41, 7}, {100, 15}, {512, 77}};
    struct policy p = retro(0.15, 2);
    for (size_t i = 0; i < sizeof of_015 / sizeof *of_015; i++)
        assert_int_equal(policy_select_count(&p, of_015[i][0], 16), of_015[i][1]);
}

static void budget_in_tokens(void **state)
{
    (void)state;
    for (int page = 4; page <= 32; page *= 2)
        for (int tokens = 1; tokens < 700; tokens += 3)
            for (int pages = 1; pages < 300; pages += 7) {
                struct policy p = retro(0.5, 2);
                p.kv_budget_tokens = tokens;
                int k = (tokens + page - 1) / page;
                if (k < 3) k = 3;
                assert_int_equal(policy_select_count(&p, pages, page), k >= pages ? 0 : k);
            }
    struct policy most = retro(0.15, 2);
    most.kv_budget_tokens = INT_MAX;
    assert_int_equal(policy_select_count(&most, 1 << 20, 4), 0);
}

static void budget_one_and_dense_read_all(void **state)
{
    (void)state;
    struct policy one = retro(1, 4), dense = retro(0.01, 4);
    dense.kind = POLICY_DENSE;
    for (int pages = 1; pages < 5000; pages++) {
        assert_int_equal(policy_select_count(&one, pages, 16), 0);
        assert_int_equal(policy_select_count(&dense, pages, 16), 0);
    }
    struct policy tiny = retro(0.000001, 2);
    assert_int_equal(policy_select_count(&tiny, 1 << 20, 4), 3);
}

static void rows_are_the_window_after_the_prompt(void **state)
{
    (void)state;
    for (int window = 1; window <= 9; window++)
        for (int first = 1; first < 40; first++)
            for (int p = first; p < 60; p++) {
                struct policy q = retro(0.15, window);
                int expected = 0; /* rows r with first <= r and p-w+1 <= r <= p */
                for (int r = 0; r <= p; r++) expected += r >= first && r >= p - window + 1;
                assert_int_equal(policy_rows(&q, p, first), expected);
                q.kind = POLICY_QUEST;
                assert_int_equal(policy_rows(&q, p, first), 1);
                q.kind = POLICY_DENSE;
                assert_int_equal(policy_rows(&q, p, first), 1);
            }
}

static int visible_pages(int position, int sliding, int page)
{
    int n = 0;
    for (int j = 0; j * page <= position; j++) {
        int seen = 0;
        for (int i = j * page; i < (j + 1) * page; i++)
            seen |= i <= position && (!sliding || i > position - sliding);
        n += seen;
    }
    return n;
}

static void spans_count_what_is_visible(void **state)
{
    (void)state;
    static const int slidings[] = {0, 1, 5, 16, 33, 100};
    for (int page = 4; page <= 32; page *= 2)
        for (size_t w = 0; w < sizeof slidings / sizeof *slidings; w++)
            for (int position = 30; position < 330; position += 7) {
                struct policy p = retro(0.15, 3);
                struct decode_span s = policy_span(&p, 5, 17, position, position - 1, page, slidings[w]);
                assert_int_equal(s.slot, 5);
                assert_int_equal(s.row0, 17);
                assert_int_equal(s.n_rows, 2);
                assert_int_equal(s.position, position);
                assert_int_equal(s.dense_layers, 2);
                assert_int_equal(s.n_sink, 1);
                assert_int_equal(s.group, SCORE_GROUP_SOFTMAX);
                assert_true(s.alpha == 0.2f);
                struct policy streaming = p;
                streaming.kind = POLICY_STREAMING;
                streaming.window = 1;
                struct decode_span r =
                    policy_span(&streaming, 5, 17, position, position - 1, page, slidings[w]);
                assert_int_equal(r.group, SCORE_GROUP_RECENT);
                assert_int_equal(r.n_rows, 1);
                assert_int_equal(r.n_select[0], s.n_select[0]);
                assert_false(r.keep);
                assert_true(s.keep);
                assert_int_equal(s.n_select[0],
                                 policy_select_count(&p, visible_pages(position, 0, page), page));
                assert_int_equal(s.n_select[1],
                                 policy_select_count(&p, visible_pages(position, slidings[w], page), page));
            }
}

/* Sink pages that leave nothing to choose: all is read, nothing scored. */
static void sinks_may_be_all_there_is(void **state)
{
    (void)state;
    struct policy p = retro(0.15, 2);
    for (int page = 4; page <= 32; page *= 2)
        for (p.sink_pages = 0; p.sink_pages < 60; p.sink_pages++) {
            struct decode_span s =
                policy_span(&p, 0, 0, 40 * page, 30, page, 8 * page); /* pages 0 or 32 .. 40 */
            assert_int_equal(s.n_select[0], p.sink_pages < 40 ? 7 : 0);
            assert_int_equal(s.n_select[1], p.sink_pages < 40 ? 3 : 0);
        }
}

/* Only a window above 1 needs the output cache; dense reads all pages. */
static void what_is_kept(void **state)
{
    (void)state;
    struct policy p = retro(0.15, 1);
    assert_false(policy_span(&p, 0, 0, 100, 50, 16, 0).keep);
    p.window = 2;
    assert_true(policy_span(&p, 0, 0, 100, 50, 16, 0).keep);
    p.kind = POLICY_QUEST;
    assert_false(policy_span(&p, 0, 0, 100, 50, 16, 0).keep);
    p.kind = POLICY_DENSE;
    struct decode_span s = policy_span(&p, 0, 0, 100, 50, 16, 0);
    assert_false(s.keep);
    assert_int_equal(s.n_select[0], 0); /* read by the same path as sparse layers, so counted by it too */
    assert_int_equal(s.n_select[1], 0);
    assert_string_equal(policy_kind_name(POLICY_DENSE), "dense");
    assert_string_equal(policy_kind_name(POLICY_QUEST), "quest");
    assert_string_equal(policy_kind_name(POLICY_RETRO), "retro");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(select_count_is_the_budget),
        cmocka_unit_test(budget_in_tokens),
        cmocka_unit_test(budget_one_and_dense_read_all),
        cmocka_unit_test(rows_are_the_window_after_the_prompt),
        cmocka_unit_test(spans_count_what_is_visible),
        cmocka_unit_test(sinks_may_be_all_there_is),
        cmocka_unit_test(what_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
