/* pattern.h - a regular expression or literal of tokenizer.json, and its matches in a text.
 *
 * The files are written for Oniguruma; PCRE2 (UTF, UCP, JIT) runs them. pattern_regex() therefore translates
 * what the two spell alike but mean differently (\s is the property White_Space, \w, \v, ^ and $ at every
 * line, script names) and refuses by name what it does not know to mean the same: back references, \b, \h,
 * nested classes, inline options other than i, {n}+ and {n}? and {,n}. PCRE2 10.42 carries Unicode 14:
 * characters assigned later belong to no class but unassigned there. A compiled pattern is immutable and may
 * be shared; a scan belongs to one thread. */
#ifndef RETRO_PATTERN_H
#define RETRO_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"
#include "runtime/buffer.h"

struct pattern {
    struct pcre2_real_code_8 *code; /* NULL for a literal or nothing */
    char *literal;                  /* owned; NULL for a regular expression or nothing */
    size_t literal_bytes;
};

/* `where` names the field in messages ("pre_tokenizer.pattern.Regex"). */
enum status pattern_regex(struct pattern *p, const char *regex, const char *where, struct reason *why);
/* Matches exactly these bytes; an empty string is refused. */
enum status pattern_literal(struct pattern *p, const char *s, const char *where, struct reason *why);
void pattern_free(struct pattern *p);

/* What a scan needs beside the pattern; one per thread and level of nesting. Zeroed at first, freed at the
 * end. */
struct pattern_scratch {
    struct pcre2_real_match_data_8 *data;
    struct pcre2_real_match_context_8 *context;
};
void pattern_scratch_free(struct pattern_scratch *s);

/* Finds the matches of valid UTF-8 text[0..n) from left to right, none overlapping and no empty one right
 * behind another match. An error (the match limit) ends the scan with `status` set. */
struct pattern_scan {
    const struct pattern *pattern;
    struct pattern_scratch *scratch;
    const char *text;
    size_t n, at, last_end;
    bool matched; /* last_end is the end of a match */
    enum status status;
};
struct pattern_scan pattern_scan_begin(const struct pattern *p, struct pattern_scratch *scratch,
                                       const char *text, size_t n);
bool pattern_scan_next(struct pattern_scan *s, size_t *start, size_t *end, struct reason *why);

/* Appends the text with every match replaced. */
enum status pattern_replace(const struct pattern *p, struct pattern_scratch *scratch, const char *text,
                            size_t n, const char *content, size_t content_bytes, struct buffer *out,
                            struct reason *why);

#endif
