/* stop.h - ends a text before any of several stop strings, although it arrives in pieces.
 *
 * Text is held back only while its end could still become a stop string. The stop string that is complete
 * first ends the text (the longest of several that end together), however the text was cut into pieces. */
#ifndef RETRO_STOP_H
#define RETRO_STOP_H

#include <stdbool.h>
#include <stddef.h>

struct stop_filter {
    const char *const *text; /* borrowed; none of them empty */
    int n_texts;
    char *held;                        /* text of the last call and what is still held back */
    size_t n_held, n_passed, capacity; /* the first n_passed bytes were handed out by the last call */
    bool stopped;
    const char *found; /* the stop string that ended the text */
};

void stop_open(struct stop_filter *f, const char *const *texts, int n_texts);
void stop_close(struct stop_filter *f);
/* Takes n bytes; returns what can be passed on (borrowed until the next call, *n_out bytes). After a stop
 * string was found f->stopped is true and nothing more comes out. */
const char *stop_push(struct stop_filter *f, const char *bytes, size_t n, size_t *n_out);
/* The text is over: what was held back. */
const char *stop_flush(struct stop_filter *f, size_t *n_out);

#endif
