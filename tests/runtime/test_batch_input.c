/* test_batch_input.c - lines of a batch file and what becomes of each, against a plain model of both. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/batch_input.h"
#include "tests/runtime/random.h"

/* A file in memory with these bytes; *path names it until the descriptor is closed. */
static int make_file(const char *bytes, size_t n, char path[64])
{
    int fd = memfd_create("batch", 0);
    assert_true(fd >= 0);
    for (size_t done = 0; done < n;) {
        ssize_t k = write(fd, bytes + done, n - done);
        assert_true(k > 0);
        done += (size_t)k;
    }
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

static void next(struct batch_input *in, int64_t number, const char *text)
{
    struct batch_line line;
    struct reason why;
    bool end;
    assert_int_equal(batch_input_next(in, &line, &end, &why), STATUS_OK);
    assert_int_equal(end, text == NULL);
    if (!text) return;
    assert_int_equal(line.number, number);
    assert_int_equal(line.n, strlen(text));
    assert_memory_equal(line.text, text, line.n);
    assert_false(line.too_long);
}

static void lines_end_at_newlines(void **state)
{
    (void)state;
    static const char bytes[] = "\xef\xbb\xbf"
                                "first\n\n \t\r\nfourth\r\n\n\xef\xbb\xbf\nlast";
    struct batch_input in;
    struct reason why;
    char path[64];
    int fd = make_file(bytes, sizeof bytes - 1, path);
    assert_int_equal(batch_input_open(&in, path, &why), STATUS_OK);
    assert_int_equal(in.facts.n_bytes, sizeof bytes - 1);
    assert_int_equal(in.facts.n_lines, 7);
    assert_int_equal(in.facts.n_requests, 4);
    next(&in, 1, "first");
    next(&in, 4, "fourth\r");
    next(&in, 6, "\xef\xbb\xbf"); /* only the file may begin with a mark */
    next(&in, 7, "last");
    next(&in, 0, NULL);
    next(&in, 0, NULL);
    batch_input_close(&in);
    close(fd);
    fd = make_file("", 0, path);
    assert_int_equal(batch_input_open(&in, path, &why), STATUS_OK);
    assert_int_equal(in.facts.n_lines, 0);
    next(&in, 0, NULL);
    batch_input_close(&in);
    close(fd);
}

/* Random lines, some longer than a read, some blank: each comes whole, with its number. */
static void any_lines(void **state)
{
    (void)state;
    enum { LINES = 60, LONGEST = 150000 };
    struct random r = {7};
    for (int round = 0; round < 8; round++) {
        struct buffer all = {0};
        size_t at[LINES], n[LINES];
        int n_wanted = 0;
        for (int i = 0; i < LINES; i++) {
            at[i] = all.n;
            n[i] =
                (size_t)(random_int(&r, 0, 9) == 0 ? random_int(&r, 60000, LONGEST) : random_int(&r, 0, 40));
            bool blank = random_int(&r, 0, 4) == 0;
            for (size_t k = 0; k < n[i]; k++)
                buffer_append(&all, blank ? " " : k == 0 ? "{" : k % 7 ? "a" : " ", 1);
            if (blank) n[i] = 0;
            n_wanted += n[i] > 0;
            if (i + 1 < LINES || round % 2) buffer_append(&all, "\n", 1);
        }
        struct batch_input in;
        struct batch_line line;
        struct reason why;
        char path[64];
        bool end;
        int fd = make_file(all.bytes, all.n, path);
        assert_int_equal(batch_input_open(&in, path, &why), STATUS_OK);
        assert_int_equal(in.facts.n_requests, n_wanted);
        for (int i = 0; i < LINES; i++) {
            if (!n[i]) continue;
            assert_int_equal(batch_input_next(&in, &line, &end, &why), STATUS_OK);
            assert_false(end);
            assert_int_equal(line.number, i + 1);
            assert_int_equal(line.n, n[i]);
            assert_memory_equal(line.text, all.bytes + at[i], n[i]);
        }
        next(&in, 0, NULL);
        batch_input_close(&in);
        close(fd);
        buffer_free(&all);
    }
}

static void a_line_too_long_is_one_line(void **state)
{
    (void)state;
    for (int beyond = 0; beyond < 2; beyond++) {
        size_t n = (size_t)BATCH_LINE_MAX + (size_t)beyond;
        char *bytes = malloc(n + 7), path[64];
        assert_non_null(bytes);
        memset(bytes, 'x', n);
        memcpy(bytes + n, "\nnext\n", 6);
        int fd = make_file(bytes, n + 6, path);
        struct batch_input in;
        struct batch_line line;
        struct batch_request request;
        struct api_error e;
        struct reason why;
        bool end;
        assert_int_equal(batch_input_open(&in, path, &why), STATUS_OK);
        assert_int_equal(batch_input_next(&in, &line, &end, &why), STATUS_OK);
        assert_int_equal(line.n, BATCH_LINE_MAX);
        assert_int_equal(line.too_long, beyond);
        assert_false(batch_request_parse(&request, &line, &e));
        assert_string_equal(e.code, beyond ? "line_too_long" : "invalid_json");
        batch_request_close(&request);
        next(&in, 2, "next");
        batch_input_close(&in);
        close(fd);
        free(bytes);
    }
}

static void files_that_are_refused(void **state)
{
    (void)state;
    struct batch_input in;
    struct reason why;
    assert_int_equal(batch_input_open(&in, "/nowhere/in.jsonl", &why), STATUS_BAD_OPTION);
    assert_non_null(strstr(why.text, "--input /nowhere/in.jsonl"));
    assert_int_equal(batch_input_open(&in, "/dev/null", &why), STATUS_BAD_OPTION);
    assert_int_equal(batch_input_open(&in, "/tmp", &why), STATUS_BAD_OPTION);
    char fifo[] = "/tmp/test_batch_XXXXXX";
    assert_non_null(mkdtemp(fifo));
    char path[64];
    snprintf(path, sizeof path, "%s/fifo", fifo);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(batch_input_open(&in, path, &why),
                     STATUS_BAD_OPTION); /* and does not wait for a writer */
    unlink(path);
    rmdir(fifo);
}

static void a_file_that_changes_is_noticed(void **state)
{
    (void)state;
    static const char *const changes[] = {"one\ntwo\nthree\nfour\n", "one\n",
                                          "one\ntwo\nthrEe\n",       "",
                                          "\none\ntwo\nthree\n",     "one\n\n\n\ntwo\nthree\n"};
    static const char *const before[] = {"one", "two", "three"};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        struct batch_input in;
        struct batch_line line;
        struct reason why;
        char path[64];
        bool end = false;
        int fd = make_file("one\ntwo\nthree\n", 14, path);
        assert_int_equal(batch_input_open(&in, path, &why), STATUS_OK);
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, changes[i], strlen(changes[i]), 0), strlen(changes[i]));
        enum status status = STATUS_OK;
        while (status == STATUS_OK && !end) {
            status = batch_input_next(&in, &line, &end, &why);
            if (status != STATUS_OK || end) continue;
            /* Whatever is handed out is what was there, or a result would be kept that belongs to another file. */
            assert_in_range(line.number, 1, 3);
            assert_int_equal(line.n, strlen(before[line.number - 1]));
            assert_memory_equal(line.text, before[line.number - 1], line.n);
        }
        assert_int_equal(status, STATUS_IO);
        assert_non_null(strstr(why.text, "changed while it was read"));
        batch_input_close(&in);
        close(fd);
    }
}

/* ------------------------------------------------------------------------------------------ requests */
#define BODY "\"body\":{\"model\":\"m\"}"
#define HEAD "\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\","

static void requests(void **state)
{
    (void)state;
    static const struct {
        const char *text, *code, *param, *custom_id; /* code NULL: good */
    } cases[] = {
        {"{" HEAD BODY "}", NULL, NULL, "a"},
        {" {" HEAD BODY "} \r", NULL, NULL, "a"},
        {"{" HEAD "\"body\":{\"model\":\"m\",\"stream\":true,\"anything\":1}}", NULL, NULL, "a"},
        {"{" HEAD "\"body\":[]}", "invalid_value", "body", "a"},
        {"{" HEAD BODY ",\"priority\":1}", "unknown_field", "priority", "a"},
        {"{" HEAD "\"x\":1}", "unknown_field", "x", "a"},
        {"{" HEAD "\"x\\ny\":1}", "unknown_field", "x\ny", "a"},
        {"{\"custom_id\":\"a\"}", "missing_field", "method", "a"},
        {"{\"method\":\"POST\",\"url\":\"/v1/completions\"," BODY "}", "missing_field", "custom_id", NULL},
        {"{\"custom_id\":1,\"method\":\"POST\",\"url\":\"/v1/completions\"," BODY "}", "invalid_value",
         "custom_id", NULL},
        {"{\"custom_id\":\"\",\"method\":\"POST\",\"url\":\"/v1/completions\"," BODY "}", "invalid_value",
         "custom_id", NULL},
        {"{\"custom_id\":\"b\",\"method\":\"GET\",\"url\":\"/v1/completions\"," BODY "}", "invalid_value",
         "method", "b"},
        {"{\"custom_id\":\"b\",\"method\":\"POST\",\"url\":\"/v1/embeddings\"," BODY "}", "invalid_value",
         "url", "b"},
        {"{\"custom_id\":\"b\",\"method\":\"POST\",\"url\":7," BODY "}", "invalid_value", "url", "b"},
        {"{" HEAD BODY ",\"custom_id\":\"b\"}", "invalid_json", "", NULL},
        {"{" HEAD BODY "}}", "invalid_json", "", NULL},
        {"{" HEAD BODY, "invalid_json", "", NULL},
        {"[]", "invalid_json", "", NULL},
        {"\"\\u0000\"", "invalid_json", "", NULL},
        {"{\"custom_id\":\"\xff\"}", "invalid_json", "", NULL},
        {"\xef\xbb\xbf{" HEAD BODY "}", "invalid_json", "", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct batch_line line = {.number = 3, .text = cases[i].text, .n = strlen(cases[i].text)};
        struct batch_request r;
        struct api_error e = {.code = NULL};
        bool good = batch_request_parse(&r, &line, &e);
        if (good != !cases[i].code) print_error("%s: %s\n", cases[i].text, good ? "" : e.reason.text);
        assert_int_equal(good, !cases[i].code);
        if (cases[i].code) {
            assert_string_equal(e.code, cases[i].code);
            assert_string_equal(e.param, cases[i].param);
            assert_true(e.reason.text[0] && !strchr(e.reason.text, '\n'));
        } else {
            assert_int_equal(r.endpoint, API_CHAT);
            assert_ptr_equal(r.body, json_object_get(r.root, "body"));
        }
        if (cases[i].custom_id) assert_string_equal(r.custom_id, cases[i].custom_id);
        else assert_null(r.custom_id);
        batch_request_close(&r);
    }
}

static void nul_bytes_and_long_ids(void **state)
{
    (void)state;
    struct batch_request r;
    struct api_error e;
    struct batch_line line = {.number = 1, .text = "{}\0", .n = 3};
    assert_false(batch_request_parse(&r, &line, &e));
    assert_string_equal(e.reason.text, "byte 3 is NUL");
    batch_request_close(&r);
    for (int n = BATCH_CUSTOM_ID_MAX; n <= BATCH_CUSTOM_ID_MAX + 1; n++) {
        char id[BATCH_CUSTOM_ID_MAX + 2], text[2000];
        memset(id, 'i', (size_t)n);
        id[n] = 0;
        line.n = (size_t)snprintf(
            text, sizeof text,
            "{\"custom_id\":\"%s\",\"method\":\"POST\",\"url\":\"/v1/completions\"," BODY "}", id);
        line.text = text;
        assert_int_equal(batch_request_parse(&r, &line, &e), n == BATCH_CUSTOM_ID_MAX);
        assert_int_equal(r.custom_id != NULL, n == BATCH_CUSTOM_ID_MAX);
        batch_request_close(&r);
    }
}

static void ids_are_seen_once(void **state)
{
    (void)state;
    enum { N = 5000 };
    struct batch_ids ids = {0};
    char text[32];
    for (int i = 0; i < 3 * N; i++) {
        snprintf(text, sizeof text, "id-%d", (i * 7) % N); /* each of N comes three times */
        assert_int_equal(batch_ids_add(&ids, text), i < N);
    }
    assert_int_equal(ids.n_ids, N);
    batch_ids_close(&ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_end_at_newlines),          cmocka_unit_test(any_lines),
        cmocka_unit_test(a_line_too_long_is_one_line),    cmocka_unit_test(files_that_are_refused),
        cmocka_unit_test(a_file_that_changes_is_noticed), cmocka_unit_test(requests),
        cmocka_unit_test(nul_bytes_and_long_ids),         cmocka_unit_test(ids_are_seen_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
