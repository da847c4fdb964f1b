/* fuzz_batch.c - libFuzzer target: any bytes as the input of a batch, and each of its lines as a record of
 * the journal. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/base/die.h"
#include "runtime/batch_input.h"
#include "runtime/batch_journal.h"
#include "runtime/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse_request(const struct batch_line *line, struct batch_ids *ids)
{
    struct batch_request r;
    struct api_error e = {.code = NULL};
    if (batch_request_parse(&r, line, &e)) {
        ASSERT(r.custom_id && json_is_object(r.body) &&
               (r.endpoint == API_CHAT || r.endpoint == API_COMPLETIONS) && !e.code);
    } else {
        ASSERT(e.code && e.reason.text[0] && !strchr(e.reason.text, '\n'));
    }
    if (r.custom_id) {
        batch_ids_add(ids, r.custom_id);
        ASSERT(!batch_ids_add(ids, r.custom_id));
    }
    batch_request_close(&r);
}

/* What parses is what formatting writes, to the byte. */
static void parse_record(const struct batch_line *l)
{
    struct buffer whole = {0};
    buffer_append(&whole, l->text, l->n);
    buffer_append(&whole, "\n", 1);
    const char *text = whole.bytes;
    size_t n = whole.n;
    int64_t line;
    bool is_error;
    const char *record;
    size_t n_record;
    struct buffer again = {0};
    if (batch_record_parse(text, n, &line, &is_error, &record, &n_record)) {
        ASSERT(record >= text && record + n_record <= text + n);
        batch_record_format(&again, line, is_error, record, n_record);
        ASSERT(again.n == n && memcmp(again.bytes, text, n) == 0);
        again.n = 0;
    }
    batch_record_format(&again, 7, true, text, n);
    ASSERT(batch_record_parse(again.bytes, again.n, &line, &is_error, &record, &n_record));
    ASSERT(line == 7 && is_error && n_record == n && memcmp(record, text, n) == 0);
    buffer_free(&again);
    buffer_free(&whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    if (fd < 0) fd = memfd_create("batch", 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ASSERT(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    struct batch_input in;
    struct batch_line line;
    struct batch_ids ids = {0};
    struct reason why;
    bool end = false;
    int64_t n = 0, last = 0;
    ASSERT(batch_input_open(&in, path, &why) == STATUS_OK);
    ASSERT(in.facts.n_bytes == (int64_t)size);
    for (;;) {
        ASSERT(batch_input_next(&in, &line, &end, &why) == STATUS_OK);
        if (end) break;
        ASSERT(line.number > last && line.number <= in.facts.n_lines);
        last = line.number;
        n++;
        parse_request(&line, &ids);
        parse_record(&line);
    }
    ASSERT(n == in.facts.n_requests);
    batch_input_close(&in);
    batch_ids_close(&ids);
    return 0;
}
