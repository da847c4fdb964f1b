/* batch_journal.h - what a batch has finished, safe from any end of the process; its results in input order.
 *
 * OUTPUT.journal is a text file of JSON lines: a head that says what it belongs to, then one record a
 * finished input line in the order in which they finished:
 *
 *     {"retro_batch":1,"input":{"bytes":..,"sha256":".."},"created":..,"settings":{..}}
 *     {"line":17,"to":"output","record":{..},"crc":"1a2b3c4d"}
 *
 *   none --batch_journal_open--> begun --add, sync--> begun --batch_journal_publish--> complete
 *
 * Invariants:
 *  1. A record is one write; it counts as finished after the next batch_journal_sync.
 *  2. Opening cuts off what follows the last whole record (a torn line, or what a power cut left of lines
 * that were not synchronised): those input lines are computed again. A record with a wrong CRC ends the good
 * part.
 *  3. An input line has at most one record.
 *  4. The files of results appear whole and by rename, only when every request has its record. The journal is
 *     then replaced by its head with "complete", so that running again does nothing and other runs are
 * refused.
 *  5. One process has the journal: an flock, which ends with the process. */
#ifndef RETRO_BATCH_JOURNAL_H
#define RETRO_BATCH_JOURNAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/buffer.h"

struct batch_place {
    int64_t at; /* of the record's line in the journal; 0: the input line is not finished */
    bool is_error;
};

struct batch_journal {
    const char *output, *errors; /* errors NULL: they are among the output's lines; borrowed */
    char *path;                  /* owned */
    int fd;
    int64_t created; /* of the head */
    bool complete;
    bool unsynced;
    int64_t n_bytes;           /* of whole records and the head */
    int64_t n_lost;            /* bytes that opening cut off */
    int64_t n_lines;           /* of the input */
    struct batch_place *place; /* (n_lines + 1), by line number; owned */
    int64_t n_records, n_errors;
};

/* What a batch is: opening again with anything else is refused. `settings` is an object of short values by
 * the name that a person gives them, for example "--policy". */
struct batch_identity {
    int64_t input_bytes;
    const char *input_sha256;
    int64_t input_lines;
    int64_t created;        /* kept from the first opening, not compared */
    const json_t *settings; /* borrowed */
};

/* Begins or continues OUTPUT.journal. BAD_OPTION, with what to do: it belongs to another batch, another
 * process has it, it is no journal, or output or errors exist and are not its own. IO: the file system
 * refuses. */
enum status batch_journal_open(struct batch_journal *j, const char *output, const char *errors,
                               const struct batch_identity *id, struct reason *why);
void batch_journal_close(struct batch_journal *j);

static inline bool batch_journal_has(const struct batch_journal *j, int64_t line)
{
    return j->place[line].at != 0;
}

/* Appends the record of input line `line`: record[0..n) is one JSON value without line breaks. IO: not
 * written; the journal is as before. */
enum status batch_journal_add(struct batch_journal *j, int64_t line, bool is_error, const char *record,
                              size_t n, struct reason *why);
/* To the disk. IO: what was added since the last time may be lost. */
enum status batch_journal_sync(struct batch_journal *j, struct reason *why);

/* Writes output and errors, in input order, and completes the journal. IO: nothing has changed; running again
 * tries again. */
enum status batch_journal_publish(struct batch_journal *j, struct reason *why);

/* ------------------------------------------------------------------------------------------ the record's
 * form */
/* A whole line with its newline. */
void batch_record_format(struct buffer *out, int64_t line, bool is_error, const char *record, size_t n);
/* False unless text[0..n) is exactly what batch_record_format writes; *record points into it. */
bool batch_record_parse(const char *text, size_t n, int64_t *line, bool *is_error, const char **record,
                        size_t *n_record);

#endif
