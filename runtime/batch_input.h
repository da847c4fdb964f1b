/* batch_input.h - the requests of a batch: a file of JSON objects, one a line (OpenAI's batch format).
 *
 * A line ends at its newline or at the end of the file; "\r" before it is blank, lines of blanks alone are
 * no requests and are passed over (they count for line numbers, which begin at 1). A byte order mark before
 * the first line is passed over. Everything else that is no request is an error of its line and of no other:
 * longer than BATCH_LINE_MAX, a NUL byte, no UTF-8, no JSON object, unknown, missing or wrong fields, a
 * custom_id that an earlier line has.
 *
 * Invariants: a file is read twice, for its hash and count (batch_input_open) and for its lines; the second
 * reading must find the same bytes, or the run fails: before a line that is another one is handed out, or at the
 * end at the latest. Nothing holds more than one line, and 4 bytes of each. */
#ifndef RETRO_BATCH_INPUT_H
#define RETRO_BATCH_INPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/api.h"
#include "runtime/base/sha256.h"
#include "runtime/base/status.h"
#include "runtime/buffer.h"

enum { BATCH_LINE_MAX = 16 << 20, BATCH_CUSTOM_ID_MAX = 512 };

struct batch_line {
    int64_t number;   /* from 1 */
    const char *text; /* (n) without its newline; borrowed until the next line */
    size_t n;
    bool too_long; /* text is the beginning of it */
};

/* What the first reading found. */
struct batch_input_facts {
    int64_t n_bytes, n_lines, n_requests; /* n_requests: lines that hold anything but blanks */
    int64_t modified_s;                   /* Unix time of the file's last change */
    char sha256[2 * SHA256_BYTES + 1];
};

struct batch_input {
    const char *path; /* borrowed */
    int fd;
    struct batch_input_facts facts;
    uint32_t *sum; /* (facts.n_requests) of each line that is a request: CRC-32 and number; owned */
    /* The reading in progress. */
    struct sha256 hash;
    char *chunk; /* owned */
    size_t n_chunk, at;
    struct buffer line;
    int64_t n_read, number, n_given; /* n_given: of requests */
};

/* Opens a regular file and reads it once. BAD_OPTION: no such file, not a regular file; IO: it cannot be
 * read. The reading of lines begins at the first. */
enum status batch_input_open(struct batch_input *in, const char *path, struct reason *why);
void batch_input_close(struct batch_input *in);
/* The next line that holds anything; *end when there is none. IO: unreadable, or not the bytes of before. */
enum status batch_input_next(struct batch_input *in, struct batch_line *line, bool *end, struct reason *why);

/* ------------------------------------------------------------------------------------------ one request */
struct batch_request {
    json_t *root;          /* owned; NULL when the line is no JSON object */
    const char *custom_id; /* of root; NULL when the line has none that can be used */
    enum api_endpoint endpoint;
    const json_t *body; /* of root: an object; its fields are the API's to judge (api_parse_json) */
};

/* Judges a line up to its body. False: `e` says why; custom_id is there when it could be read. The caller closes
 * in either case. */
bool batch_request_parse(struct batch_request *r, const struct batch_line *line, struct api_error *e);
void batch_request_close(struct batch_request *r);

/* ------------------------------------------------------------------------------------------ custom ids */
/* The set of ids seen so far, as 128 bits of their SHA-256: 16 bytes an id, and no two ids are mistaken. */
struct batch_ids {
    uint64_t (*slot)[2]; /* (capacity), zeros are free; owned */
    size_t capacity, n_ids;
};

/* False when the id was there before. */
bool batch_ids_add(struct batch_ids *ids, const char *custom_id);
void batch_ids_close(struct batch_ids *ids);

#endif
