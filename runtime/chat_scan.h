/* chat_scan.h - the few things of a Jinja chat template that are read: its tags, and sums of strings in them.
 *
 * No Jinja is run. A template is a list of tags {{ ... }} and {% ... %}; a tag that adds up literals and
 * known names
 * ('[INST] ' + message['content'] | trim + eos_token) becomes a list of terms, any other has none. */
#ifndef RETRO_CHAT_SCAN_H
#define RETRO_CHAT_SCAN_H

#include <stdbool.h>
#include <stddef.h>

#define CHAT_TERMS_MAX 12

enum chat_term_kind {
    CHAT_TERM_LITERAL,
    CHAT_TERM_BOS,     /* bos_token */
    CHAT_TERM_EOS,     /* eos_token */
    CHAT_TERM_ROLE,    /* message['role'] */
    CHAT_TERM_CONTENT, /* message['content'] or content */
    CHAT_TERM_SYSTEM,  /* system_message */
    CHAT_TERM_OTHER
};

struct chat_term {
    enum chat_term_kind kind;
    bool trim;     /* | trim or .strip() */
    char *literal; /* decoded; owned; NULL for other kinds */
};

struct chat_tag {
    size_t at;      /* where the tag begins in the template */
    bool statement; /* {% %} */
    char set[32];   /* {% set NAME = ... %}: the name; else "" */
    struct chat_term terms[CHAT_TERMS_MAX];
    int n_terms; /* of the tag, or of what is set; 0: not a sum */
    bool has_other;
};

struct chat_scan {
    struct chat_tag *tags;
    int n_tags;
};

void chat_scan_open(struct chat_scan *s, const char *template);
void chat_scan_close(struct chat_scan *s);
/* The literals of a tag that is nothing but literals, joined; NULL otherwise. malloc'd. */
char *chat_tag_literal(const struct chat_tag *tag);
/* How many terms of a kind the tag has, and the first one's place (-1). */
int chat_tag_count(const struct chat_tag *tag, enum chat_term_kind kind, int *first);
/* Whether some literal of the tag contains `text`. */
bool chat_tag_mentions(const struct chat_tag *tag, const char *text);

#endif
