/* test_stop.c - stop strings in text that arrives in pieces: any cut gives what a search of the whole text
 * gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "runtime/stop.h"
#include "tests/runtime/random.h"

enum { TEXT_MAX = 200 };

/* The definition: at the first byte at which some stop string ends, the longest of those that end there
 * decides. */
static size_t length_before_stop(const char *text, size_t n, const char *const *stops, int n_stops)
{
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (int i = 0; i < n_stops; i++) {
            size_t k = strlen(stops[i]);
            if (k <= end && k > longest && memcmp(text + end - k, stops[i], k) == 0) longest = k;
        }
        if (longest > 0) return end - longest;
    }
    return n;
}

/* Could the end of `text` still become a stop string? Then at least that much must be held back, and no more.
 */
static size_t open_end(const char *text, size_t n, const char *const *stops, int n_stops)
{
    size_t most = 0;
    for (int i = 0; i < n_stops; i++)
        for (size_t k = 1; k < strlen(stops[i]) && k <= n; k++)
            if (k > most && memcmp(text + n - k, stops[i], k) == 0) most = k;
    return most;
}

static void check_cut(const char *text, size_t n, const char *const *stops, int n_stops, struct random *r)
{
    struct stop_filter f;
    char out[TEXT_MAX + 1];
    size_t n_out = 0, at = 0, k;
    size_t expected = length_before_stop(text, n, stops, n_stops);
    stop_open(&f, stops, n_stops);
    while (at < n) {
        size_t piece = (size_t)random_int(r, 0, random_int(r, 0, 3) == 0 ? (int)n : 4);
        if (piece > n - at) piece = n - at;
        const char *more = stop_push(&f, text + at, piece, &k);
        assert_true(n_out + k <= n);
        memcpy(out + n_out, more, k);
        n_out += k;
        at += piece;
        size_t seen = length_before_stop(text, at, stops, n_stops);
        if (f.stopped) assert_int_equal(n_out, expected);
        else assert_int_equal(n_out, at - open_end(text, at, stops, n_stops));
        assert_int_equal(f.stopped, seen < at || (expected == seen && expected < at));
    }
    const char *rest = stop_flush(&f, &k);
    memcpy(out + n_out, rest, k);
    n_out += k;
    assert_int_equal(n_out, expected);
    assert_memory_equal(out, text, n_out);
    stop_close(&f);
}

/* A small alphabet, so that stop strings overlap themselves and each other. */
static void any_cut_gives_the_same(void **state)
{
    (void)state;
    struct random r = {7};
    for (int round = 0; round < 40000; round++) {
        char text[TEXT_MAX], stop[4][8];
        const char *stops[4];
        int n_stops = random_int(&r, 0, 4), letters = random_int(&r, 1, 3);
        size_t n = (size_t)random_int(&r, 0, random_int(&r, 0, 9) == 0 ? TEXT_MAX : 24);
        for (size_t i = 0; i < n; i++) text[i] = (char)('a' + random_int(&r, 0, letters));
        for (int i = 0; i < n_stops; i++) {
            int k = random_int(&r, 1, 6);
            for (int j = 0; j < k; j++) stop[i][j] = (char)('a' + random_int(&r, 0, letters));
            stop[i][k] = 0;
            stops[i] = stop[i];
        }
        check_cut(text, n, stops, n_stops, &r);
    }
}

static void pieces_decide_nothing(void **state)
{
    (void)state;
    static const char *const stops[] = {"xabz", "ab"};
    size_t n;
    struct stop_filter f;
    stop_open(&f, stops, 2);
    const char *out = stop_push(&f, "1xabz", 5, &n);
    assert_int_equal(n, 2);
    assert_memory_equal(out, "1x", 2);
    assert_true(f.stopped);
    stop_push(&f, "more", 4, &n);
    assert_int_equal(n, 0);
    stop_flush(&f, &n);
    assert_int_equal(n, 0);
    stop_close(&f);
}

static void without_stop_strings_nothing_waits(void **state)
{
    (void)state;
    struct stop_filter f;
    size_t n;
    stop_open(&f, NULL, 0);
    assert_string_equal(stop_flush(&f, &n), "");
    assert_int_equal(n, 0);
    assert_memory_equal(stop_push(&f, "a\0b", 3, &n), "a\0b", 3);
    assert_int_equal(n, 3);
    stop_push(&f, "", 0, &n);
    assert_int_equal(n, 0);
    stop_flush(&f, &n);
    assert_int_equal(n, 0);
    stop_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_cut_gives_the_same),
        cmocka_unit_test(pieces_decide_nothing),
        cmocka_unit_test(without_stop_strings_nothing_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
