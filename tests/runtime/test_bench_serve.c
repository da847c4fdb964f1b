/* test_bench_serve.c - what `bench serve` adds up: percentiles by hand and as numpy has them, failures, goodput, and
 * the options that are lists. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "runtime/bench_serve.h"

static void near(double a, double b) { assert_float_equal(a, b, 1e-9); }

static void test_spread(void **state)
{
    (void)state;
    /* numpy: v = [7, 1, 10, 2]; v.mean(), median, std and percentile 99: 5, 4.5, 3.6742346141747673, 9.91 */
    static const double ttft[] = {7, 1, 10, 2};
    double itl_0[] = {4, 6}, itl_2[] = {5};
    struct bench_request q[5] = {0};
    struct bench_load l = {.n_requests = 5};
    struct bench_served r;
    for (int i = 0; i < 4; i++)
        q[i] = (struct bench_request){.ttft_ms = ttft[i], .e2el_ms = ttft[i], .n_input = 10, .n_output = 1};
    q[0].itl_ms = itl_0, q[0].n_itl = 2, q[0].n_output = 3, q[0].e2el_ms = 17;
    q[2].itl_ms = itl_2, q[2].n_itl = 1, q[2].n_output = 2, q[2].e2el_ms = 15;
    strcpy(q[4].error, "429: full");
    q[4].ttft_ms = 1e9, q[4].n_input = q[4].n_output = 99; /* must count nowhere */
    bench_served_sum(&r, &l, q, 5, 2);
    assert_int_equal(r.completed, 4);
    assert_int_equal(r.failed, 1);
    assert_int_equal(r.n_errors, 1);
    assert_string_equal(r.error[0].text, "429: full");
    near(r.spread[BENCH_TTFT].mean, 5);
    near(r.spread[BENCH_TTFT].median, 4.5);
    near(r.spread[BENCH_TTFT].std, 3.6742346141747673);
    near(r.spread[BENCH_TTFT].p99, 9.91);
    near(r.spread[BENCH_ITL].mean, 5);
    near(r.spread[BENCH_ITL].p99, 5.98);
    near(r.spread[BENCH_TPOT].mean, 5); /* (17-7)/2 and (15-10)/1; answers of one token have none */
    near(r.spread[BENCH_TPOT].std, 0);
    near(r.spread[BENCH_E2EL].median, 8.5); /* 1, 2, 15, 17 */
    near(r.requests_per_s, 2);
    near(r.output_per_s, 3.5);
    near(r.tokens_per_s, 23.5);
    near(r.good_per_s, 2); /* no limit: all that completed */
}

static void test_goodput(void **state)
{
    (void)state;
    struct bench_load l = {0};
    struct bench_served r;
    struct bench_request q[] = {
        {.ttft_ms = 200, .e2el_ms = 300, .n_output = 3},   /* tpot 50: on both limits */
        {.ttft_ms = 200.1, .e2el_ms = 300, .n_output = 3}, /* late first token */
        {.ttft_ms = 10, .e2el_ms = 111, .n_output = 3},    /* tpot 50.5 */
        {.ttft_ms = 10, .e2el_ms = 9000, .n_output = 1},   /* no tpot */
        {.ttft_ms = 1, .e2el_ms = 2, .n_output = 2, .error = "reset"},
    };
    assert_int_equal(bench_limits_parse(l.limit_ms, "ttft:200, tpot:50", NULL), STATUS_OK);
    bench_served_sum(&r, &l, q, 5, 1);
    near(r.good_per_s, 2);
    assert_int_equal(bench_limits_parse(l.limit_ms, "e2el:500", NULL), STATUS_OK);
    bench_served_sum(&r, &l, q, 5, 1);
    near(r.good_per_s, 1);
}

static void test_nothing_completed(void **state)
{
    (void)state;
    struct bench_load l = {0};
    struct bench_served r;
    struct bench_request q[12] = {0};
    for (int i = 0; i < 12; i++) strcpy(q[i].error, i % 2 ? "503" : (char[2]){(char)('a' + i), 0});
    bench_served_sum(&r, &l, q, 12, 1);
    assert_int_equal(r.failed, 12);
    assert_int_equal(r.n_errors, 7);
    assert_int_equal(r.error[1].n, 6); /* 503 */
    near(r.spread[BENCH_TTFT].p99, 0);
}

static void test_limits_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"ttft",  "ttft:",    "ttft:x",   "ttft:-1",   "ttft:0",
                                      "itl:5", "tpo:5",    "ttft:5ms", ":5",        "ttft:1,ttft:2",
                                      "x",     "ttft:inf", "tpot,:5",  "ttft: 200", "ttft:nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        double limit[BENCH_METRIC_COUNT] = {0};
        struct reason why = {""};
        assert_int_equal(bench_limits_parse(limit, bad[i], &why), STATUS_BAD_OPTION);
        assert_non_null(strstr(why.text, "--goodput"));
    }
}

static void test_ranges(void **state)
{
    (void)state;
    static const char *const bad[] = {"",      "0",      "-1",  "5..", "..5",  "6..5",
                                      "1...3", "1..101", "101", "7 ",  "0..3", "99999999999999999999"};
    struct bench_range r;
    struct reason why;
    assert_int_equal(bench_range_parse(&r, "input-tokens", "7", 100, &why), STATUS_OK);
    assert_int_equal(r.low, 7);
    assert_int_equal(r.high, 7);
    assert_int_equal(bench_range_parse(&r, "input-tokens", "1..100", 100, &why), STATUS_OK);
    assert_int_equal(r.low, 1);
    assert_int_equal(r.high, 100);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(bench_range_parse(&r, "input-tokens", bad[i], 100, &why), STATUS_BAD_OPTION);
        assert_non_null(strstr(why.text, "--input-tokens"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_goodput),
        cmocka_unit_test(test_nothing_completed),
        cmocka_unit_test(test_limits_refused),
        cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
