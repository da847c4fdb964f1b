#define _GNU_SOURCE
#include "runtime/stop.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

void stop_open(struct stop_filter *f, const char *const *texts, int n_texts)
{
    *f = (struct stop_filter){.text = texts, .n_texts = n_texts};
    for (int i = 0; i < n_texts; i++) ASSERT(texts[i][0]);
}

void stop_close(struct stop_filter *f)
{
    free(f->held);
    *f = (struct stop_filter){0};
}

/* Longest end of the held text that is the beginning of a stop string. */
static size_t undecided(const struct stop_filter *f)
{
    size_t longest = 0;
    for (int i = 0; i < f->n_texts; i++) {
        size_t n = strlen(f->text[i]) - 1;
        if (n > f->n_held) n = f->n_held;
        for (; n > longest; n--)
            if (memcmp(f->held + f->n_held - n, f->text[i], n) == 0) longest = n;
    }
    return longest;
}

/* Where the stop string begins that is complete first; of those that end together the longest. Nothing that
 * comes later can change this choice, so it does not depend on how the text was cut into pieces. */
static const char *find_stop(struct stop_filter *f)
{
    const char *first = NULL, *first_end = NULL;
    for (int i = 0; i < f->n_texts; i++) {
        size_t n = strlen(f->text[i]);
        const char *at = memmem(f->held, f->n_held, f->text[i], n);
        if (!at || (first && at + n > first_end) || (first && at + n == first_end && at > first)) continue;
        first = at;
        f->found = f->text[i];
        first_end = at + n;
    }
    return first;
}

/* The caller is done with what the last call handed out. */
static void drop_passed(struct stop_filter *f)
{
    if (f->n_passed == 0) return;
    memmove(f->held, f->held + f->n_passed, f->n_held - f->n_passed);
    f->n_held -= f->n_passed;
    f->n_passed = 0;
}

const char *stop_push(struct stop_filter *f, const char *bytes, size_t n, size_t *n_out)
{
    *n_out = 0;
    if (f->stopped) return "";
    drop_passed(f);
    if (f->n_held + n + 1 > f->capacity) {
        f->capacity = (f->n_held + n + 1) * 2;
        f->held = realloc(f->held, f->capacity);
        if (!f->held) DIE(EXIT_CODE_MEMORY, NULL, "no memory for text");
    }
    memcpy(f->held + f->n_held, bytes, n);
    f->n_held += n;
    const char *first = find_stop(f);
    size_t keep = first ? 0 : undecided(f);
    *n_out = first ? (size_t)(first - f->held) : f->n_held - keep;
    f->stopped = first != NULL;
    f->n_passed = *n_out;
    return f->held;
}

const char *stop_flush(struct stop_filter *f, size_t *n_out)
{
    drop_passed(f);
    *n_out = f->n_passed = f->stopped ? 0 : f->n_held;
    return f->held ? f->held : "";
}
