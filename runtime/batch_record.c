/* batch_record.c - one line of the journal; the CRC covers everything before it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/crc32.h"
#include "runtime/batch_journal.h"

enum { TAIL_BYTES = sizeof ",\"crc\":\"00000000\"}\n" - 1 };

/* What stands before the record. */
static size_t format_head(char text[64], int64_t line, bool is_error)
{
    return (size_t)snprintf(text, 64, "{\"line\":%" PRId64 ",\"to\":\"%s\",\"record\":", line,
                            is_error ? "errors" : "output");
}

static void format_tail(char text[TAIL_BYTES + 1], const char *body, size_t n)
{
    snprintf(text, TAIL_BYTES + 1, ",\"crc\":\"%08" PRIx32 "\"}\n", crc32_of(body, n));
}

void batch_record_format(struct buffer *out, int64_t line, bool is_error, const char *record, size_t n)
{
    char head[64], tail[TAIL_BYTES + 1];
    size_t begin = out->n;
    buffer_append(out, head, format_head(head, line, is_error));
    buffer_append(out, record, n);
    format_tail(tail, out->bytes + begin, out->n - begin);
    buffer_append(out, tail, TAIL_BYTES);
}

bool batch_record_parse(const char *text, size_t n, int64_t *line, bool *is_error, const char **record,
                        size_t *n_record)
{
    static const char begin[] = "{\"line\":";
    char head[64], tail[TAIL_BYTES + 1], number[24] = "";
    if (n < sizeof begin - 1 + TAIL_BYTES || memcmp(text, begin, sizeof begin - 1) != 0) return false;
    memcpy(number, text + sizeof begin - 1, TAIL_BYTES); /* the line is at least that long */
    *line = strtoll(number, NULL, 10);
    for (int error = 0; error < 2; error++) {
        size_t n_head = format_head(head, *line, error);
        if (n < n_head + TAIL_BYTES || memcmp(text, head, n_head) != 0) continue;
        format_tail(tail, text, n - TAIL_BYTES);
        *is_error = error;
        *record = text + n_head;
        *n_record = n - n_head - TAIL_BYTES;
        return *line > 0 && memcmp(text + n - TAIL_BYTES, tail, TAIL_BYTES) == 0;
    }
    return false;
}
