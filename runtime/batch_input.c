#include "runtime/batch_input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/api_parts.h"
#include "runtime/base/crc32.h"
#include "runtime/base/progress.h"
#include "runtime/utf8.h"

enum { CHUNK_BYTES = 1 << 16 };

/* ------------------------------------------------------------------------------------------ lines */
static enum status fill(struct batch_input *in, struct reason *why)
{
    ssize_t n;
    do n = read(in->fd, in->chunk, CHUNK_BYTES);
    while (n < 0 && errno == EINTR);
    if (n < 0) return status_fail(why, STATUS_IO, "--input %s: %s", in->path, strerror(errno));
    in->at = 0;
    in->n_chunk = (size_t)n;
    in->n_read += n;
    sha256_update(&in->hash, in->chunk, in->n_chunk);
    return STATUS_OK;
}

/* One line of any kind; what goes beyond BATCH_LINE_MAX is passed over. */
static enum status read_line(struct batch_input *in, bool *too_long, bool *end, struct reason *why)
{
    bool any = false;
    in->line.n = 0;
    *too_long = false;
    for (;;) {
        if (in->at == in->n_chunk) {
            enum status status = fill(in, why);
            if (status != STATUS_OK) return status;
            if (in->n_chunk == 0) break;
        }
        any = true;
        const char *from = in->chunk + in->at;
        const char *newline = memchr(from, '\n', in->n_chunk - in->at);
        size_t n = newline ? (size_t)(newline - from) : in->n_chunk - in->at;
        size_t room = BATCH_LINE_MAX - in->line.n;
        buffer_append(&in->line, from, n < room ? n : room);
        *too_long = *too_long || n > room;
        in->at += n + (newline != NULL);
        if (newline) break;
    }
    *end = !any;
    in->number += any;
    return STATUS_OK;
}

static bool is_blank(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r') return false;
    return true;
}

/* The next line that is a request, whatever its fate. */
static enum status next_line(struct batch_input *in, struct batch_line *line, bool *end, struct reason *why)
{
    for (;;) {
        bool too_long;
        enum status status = read_line(in, &too_long, end, why);
        if (status != STATUS_OK || *end) return status;
        *line = (struct batch_line){
            .number = in->number, .text = in->line.bytes, .n = in->line.n, .too_long = too_long};
        if (line->number == 1 && line->n >= 3 && memcmp(line->text, "\xef\xbb\xbf", 3) == 0) {
            line->text += 3;
            line->n -= 3;
        }
        if (too_long || !is_blank(line->text, line->n)) return STATUS_OK;
    }
}

/* Differs also where the same text has another number. */
static uint32_t sum_of(const struct batch_line *line)
{
    return crc32_of(line->text, line->n) + (uint32_t)line->number;
}

static enum status rewind_input(struct batch_input *in, struct reason *why)
{
    if (lseek(in->fd, 0, SEEK_SET) < 0)
        return status_fail(why, STATUS_IO, "--input %s: %s", in->path, strerror(errno));
    sha256_open(&in->hash);
    in->n_chunk = in->at = 0;
    in->n_read = in->number = in->n_given = 0;
    return STATUS_OK;
}

static void take_facts(struct batch_input *in, int64_t n_requests, int64_t modified_s)
{
    uint8_t digest[SHA256_BYTES];
    sha256_digest(&in->hash, digest);
    in->facts.n_bytes = in->n_read;
    in->facts.n_lines = in->number;
    in->facts.n_requests = n_requests;
    in->facts.modified_s = modified_s;
    sha256_hex(digest, sizeof digest, in->facts.sha256);
}

enum status batch_input_open(struct batch_input *in, const char *path, struct reason *why)
{
    struct stat st;
    *in = (struct batch_input){.path = path};
    /* O_NONBLOCK: a FIFO of that name must not hang us; for regular files it means nothing. */
    in->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (in->fd < 0) return status_fail(why, STATUS_BAD_OPTION, "--input %s: %s", path, strerror(errno));
    if (fstat(in->fd, &st) || !S_ISREG(st.st_mode)) {
        batch_input_close(in);
        return status_fail(why, STATUS_BAD_OPTION,
                           "--input %s: not a regular file: a batch must be able to read it again", path);
    }
    in->chunk = buffer_realloc(NULL, CHUNK_BYTES, 1);
    int64_t n_requests = 0, capacity = 0;
    bool end = false;
    struct batch_line line;
    enum status status = rewind_input(in, why);
    while (status == STATUS_OK && !end) {
        status = next_line(in, &line, &end, why);
        if (status != STATUS_OK || end) break;
        if (n_requests == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            in->sum = buffer_realloc(in->sum, (size_t)capacity, sizeof *in->sum);
        }
        in->sum[n_requests++] = sum_of(&line);
        progress_tick();
    }
    if (status == STATUS_OK) {
        take_facts(in, n_requests, (int64_t)st.st_mtime);
        status = rewind_input(in, why);
    }
    if (status != STATUS_OK) batch_input_close(in);
    return status;
}

void batch_input_close(struct batch_input *in)
{
    if (in->fd >= 0 && in->path) close(in->fd);
    free(in->chunk);
    free(in->sum);
    buffer_free(&in->line);
    *in = (struct batch_input){.fd = -1};
}

static enum status changed(const struct batch_input *in, struct reason *why)
{
    return status_fail(
        why, STATUS_IO,
        "--input %s: changed while it was read: put the old file back and run the same command "
        "again, or begin anew with another --output",
        in->path);
}

enum status batch_input_next(struct batch_input *in, struct batch_line *line, bool *end, struct reason *why)
{
    enum status status = next_line(in, line, end, why);
    if (status != STATUS_OK) return status;
    if (!*end) {
        int64_t i = in->n_given++;
        bool same =
            i < in->facts.n_requests && line->number <= in->facts.n_lines && sum_of(line) == in->sum[i];
        return same ? STATUS_OK : changed(in, why);
    }
    char hex[2 * SHA256_BYTES + 1];
    uint8_t digest[SHA256_BYTES];
    struct sha256 hash = in->hash; /* a second look at the end finds the same */
    sha256_digest(&hash, digest);
    sha256_hex(digest, sizeof digest, hex);
    return in->n_read == in->facts.n_bytes && strcmp(hex, in->facts.sha256) == 0 ? STATUS_OK
                                                                                 : changed(in, why);
}

/* ------------------------------------------------------------------------------------------ one request */
/* Fills `e` and returns false. */
#define REFUSE(e, ...) (api_error_set(e, 400, __VA_ARGS__), false)

static bool check_text(const struct batch_line *line, struct api_error *e)
{
    if (line->too_long)
        return REFUSE(e, "line_too_long", NULL, "the line is longer than %d bytes", BATCH_LINE_MAX);
    const char *nul = memchr(line->text, 0, line->n);
    if (nul) return REFUSE(e, "invalid_json", NULL, "byte %td is NUL", nul - line->text + 1);
    size_t valid = utf8_valid_prefix(line->text, line->n);
    if (valid < line->n) return REFUSE(e, "invalid_json", NULL, "byte %zu is not UTF-8", valid + 1);
    return true;
}

static bool check_fields(const json_t *root, struct api_error *e)
{
    static const char *const known[] = {"custom_id", "method", "url", "body"};
    enum { N_KNOWN = sizeof known / sizeof *known };
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)root, name, value)
    {
        bool found = false;
        for (int i = 0; i < N_KNOWN; i++) found = found || strcmp(name, known[i]) == 0;
        if (!found)
            return REFUSE(e, "unknown_field", name,
                          "%.60s: unknown; a line has custom_id, method, url and body", name);
    }
    for (int i = 0; i < N_KNOWN; i++)
        if (!json_object_get(root, known[i]))
            return REFUSE(e, "missing_field", known[i], "%s is missing", known[i]);
    return true;
}

static bool check_custom_id(const struct batch_request *r, struct api_error *e)
{
    if (r->custom_id) return true;
    return REFUSE(e, "invalid_value", "custom_id", "custom_id: needs a text of 1 to %d bytes",
                  BATCH_CUSTOM_ID_MAX);
}

static bool check_url(struct batch_request *r, struct api_error *e)
{
    static const struct {
        const char *url;
        enum api_endpoint endpoint;
    } known[] = {{"/v1/chat/completions", API_CHAT}, {"/v1/completions", API_COMPLETIONS}};
    const json_t *method = json_object_get(r->root, "method"), *url = json_object_get(r->root, "url");
    if (!json_is_string(method) || strcmp(json_string_value(method), "POST") != 0)
        return REFUSE(e, "invalid_value", "method", "method: needs \"POST\"");
    for (int i = 0; i < 2; i++) {
        r->endpoint = known[i].endpoint;
        if (json_is_string(url) && strcmp(json_string_value(url), known[i].url) == 0) return true;
    }
    return REFUSE(e, "invalid_value", "url", "url: needs %s or %s", known[0].url, known[1].url);
}

bool batch_request_parse(struct batch_request *r, const struct batch_line *line, struct api_error *e)
{
    json_error_t json;
    *r = (struct batch_request){0};
    if (!check_text(line, e)) return false;
    r->root = json_loadb(line->text, line->n, JSON_REJECT_DUPLICATES, &json);
    if (!r->root) return REFUSE(e, "invalid_json", NULL, "byte %d: %s", json.position, json.text);
    if (!json_is_object(r->root)) return REFUSE(e, "invalid_json", NULL, "not a JSON object");
    const json_t *id = json_object_get(r->root, "custom_id");
    if (json_is_string(id) && json_string_length(id) > 0 && json_string_length(id) <= BATCH_CUSTOM_ID_MAX)
        r->custom_id = json_string_value(id);
    if (!check_fields(r->root, e) || !check_custom_id(r, e) || !check_url(r, e)) return false;
    r->body = json_object_get(r->root, "body");
    return json_is_object(r->body) ||
           REFUSE(e, "invalid_value", "body", "body: needs an object: the request itself");
}

void batch_request_close(struct batch_request *r)
{
    json_decref(r->root);
    *r = (struct batch_request){0};
}
