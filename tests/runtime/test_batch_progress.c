/* test_batch_progress.c - the progress line: what is known, and nothing that is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "runtime/batch.h"

static void lines(void **state)
{
    (void)state;
    static const struct {
        struct batch_progress p;
        const char *text;
    } cases[] = {
        {{.n_requests = 5}, "0 of 5 done"},
        {{.n_requests = 1000, .n_done = 120, .n_errors = 3, .n_here = 20, .n_tokens = 8124, .seconds = 10},
         "120 of 1000 done, 3 bad, 812.4 tokens/s, 0:07:20 left"},
        /* continued: what an earlier process did says nothing about speed */
        {{.n_requests = 1000, .n_done = 500, .seconds = 10}, "500 of 1000 done"},
        {{.n_requests = 100000, .n_done = 10, .n_here = 10, .n_tokens = 10, .seconds = 100},
         "10 of 100000 done, 0.1 tokens/s, 277:45:00 left"},
        {{.n_requests = 7, .n_done = 7, .n_here = 7, .n_tokens = 7, .seconds = 0.5},
         "7 of 7 done, 14.0 tokens/s"},
        {{.n_requests = INT64_MAX, .n_done = 1, .n_here = 1, .n_tokens = INT64_MAX, .seconds = 1e-6}, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200];
        memset(text, 'x', sizeof text);
        batch_progress_format(&cases[i].p, text, sizeof text);
        assert_non_null(memchr(text, 0, sizeof text));
        if (cases[i].text) assert_string_equal(text, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lines)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
