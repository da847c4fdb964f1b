/* chat_scan.c - tags and sums of a Jinja template. Jinja's strings are Python's: the usual backslash escapes.
 */
#include "runtime/chat_scan.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/buffer.h"

#define TAGS_MAX 4096

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* Behind the string that begins at s[at]; n when it does not end. */
static size_t skip_string(const char *s, size_t at, size_t n)
{
    char quote = s[at++];
    while (at < n && s[at] != quote) at += s[at] == '\\' ? 2 : 1;
    return at < n ? at + 1 : n;
}

static void trim(const char **s, size_t *n)
{
    while (*n && is_blank(**s)) (*s)++, (*n)--;
    while (*n && is_blank((*s)[*n - 1])) (*n)--;
}

/* The value of n hexadecimal digits; 0 where they are none. */
static uint32_t hex_value(const char *s, size_t n)
{
    uint32_t value = 0;
    for (size_t i = 0; i < n; i++) {
        static const char digits[] = "0123456789abcdef0123456789ABCDEF";
        const char *digit = s[i] ? strchr(digits, s[i]) : NULL;
        if (!digit) return 0;
        value = value * 16 + (uint32_t)((digit - digits) % 16);
    }
    return value;
}

static char *decode_string(const char *s, size_t n)
{
    struct buffer out = {0};
    for (size_t i = 0; i < n; i++) {
        if (s[i] != '\\' || i + 1 == n) {
            buffer_append(&out, s + i, 1);
            continue;
        }
        static const char from[] = "nrt\\'\"", to[] = "\n\r\t\\'\"";
        char c = s[++i];
        const char *known = strchr(from, c);
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 0;
        uint32_t value = digits && n - i > digits ? hex_value(s + i + 1, digits) : 0;
        if (c && known) {
            buffer_append(&out, &to[known - from], 1);
        } else if (value && !(value >= 0xd800 && value < 0xe000)) {
            buffer_append_char(&out, value);
            i += digits;
        } else {
            buffer_append(&out, s + i - 1, 2);
        }
    }
    return buffer_take(&out);
}

/* Removes one trailing "| trim" or ".strip()". */
static bool cut_trim(const char *s, size_t *n)
{
    static const char strip[] = ".strip()", filter[] = "trim";
    size_t k = *n;
    if (k > sizeof strip - 1 && !memcmp(s + k - (sizeof strip - 1), strip, sizeof strip - 1)) {
        *n = k - (sizeof strip - 1);
        return true;
    }
    if (k <= sizeof filter - 1 || memcmp(s + k - (sizeof filter - 1), filter, sizeof filter - 1) != 0)
        return false;
    k -= sizeof filter - 1;
    while (k && is_blank(s[k - 1])) k--;
    if (!k || s[k - 1] != '|') return false;
    k--;
    while (k && is_blank(s[k - 1])) k--;
    *n = k;
    return true;
}

static bool is_one_of(const char *s, size_t n, const char *const *names, size_t n_names)
{
    for (size_t i = 0; i < n_names; i++)
        if (strlen(names[i]) == n && !memcmp(s, names[i], n)) return true;
    return false;
}
#define IS_ONE_OF(s, n, names) is_one_of(s, n, names, sizeof(names) / sizeof *(names))

static struct chat_term read_term(const char *s, size_t n)
{
    static const char *const contents[] = {"message['content']", "message[\"content\"]", "message.content",
                                           "content"};
    static const char *const roles[] = {"message['role']", "message[\"role\"]", "message.role"};
    static const char *const systems[] = {"system_message"}, *const bos[] = {"bos_token"},
                             *const eos[] = {"eos_token"};
    struct chat_term term = {.kind = CHAT_TERM_OTHER};
    trim(&s, &n);
    if (n >= 2 && (*s == '\'' || *s == '"') && skip_string(s, 0, n) == n && s[n - 1] == *s) {
        term.kind = CHAT_TERM_LITERAL;
        term.literal = decode_string(s + 1, n - 2);
        return term;
    }
    term.trim = cut_trim(s, &n);
    if (IS_ONE_OF(s, n, contents)) term.kind = CHAT_TERM_CONTENT;
    else if (IS_ONE_OF(s, n, systems)) term.kind = CHAT_TERM_SYSTEM;
    else if (IS_ONE_OF(s, n, roles)) term.kind = CHAT_TERM_ROLE;
    else if (IS_ONE_OF(s, n, bos)) term.kind = CHAT_TERM_BOS;
    else if (IS_ONE_OF(s, n, eos)) term.kind = CHAT_TERM_EOS;
    return term;
}

/* The terms between the plus signs outside strings and brackets. */
static void read_terms(struct chat_tag *tag, const char *s, size_t n)
{
    int depth = 0;
    size_t from = 0;
    for (size_t at = 0; at <= n;) {
        if (at < n && (s[at] == '\'' || s[at] == '"')) {
            at = skip_string(s, at, n);
            continue;
        }
        if (at < n) depth += (strchr("([{", s[at]) != NULL) - (strchr(")]}", s[at]) != NULL);
        if (at == n || (s[at] == '+' && !depth)) {
            struct chat_term term = read_term(s + from, at - from);
            tag->has_other |= term.kind == CHAT_TERM_OTHER || tag->n_terms == CHAT_TERMS_MAX;
            if (tag->n_terms < CHAT_TERMS_MAX) tag->terms[tag->n_terms++] = term;
            else free(term.literal);
            from = at + 1;
        }
        at++;
    }
}

static void read_tag(struct chat_tag *tag, const char *s, size_t n)
{
    if (n && (*s == '-' || *s == '+')) s++, n--;
    if (n && (s[n - 1] == '-' || s[n - 1] == '+')) n--;
    trim(&s, &n);
    if (tag->statement) {
        size_t at = 3, length = 0;
        if (n < 4 || memcmp(s, "set", 3) != 0 || !is_blank(s[3])) return;
        while (at < n && is_blank(s[at])) at++;
        while (at + length < n && is_name(s[at + length])) length++;
        if (!length || length >= sizeof tag->set) return;
        size_t equals = at + length;
        while (equals < n && is_blank(s[equals])) equals++;
        if (equals == n || s[equals] != '=') return; /* {% set a.b = ... %} and the block form */
        memcpy(tag->set, s + at, length);
        at = equals;
        s += at + 1;
        n -= at + 1;
    }
    read_terms(tag, s, n);
}

void chat_scan_open(struct chat_scan *s, const char *template)
{
    *s = (struct chat_scan){0};
    int capacity = 0;
    size_t n = strlen(template);
    for (size_t at = 0; at + 1 < n;) {
        char kind = template[at + 1];
        if (template[at] != '{' || !(kind == '{' || kind == '%' || kind == '#')) {
            at++;
            continue;
        }
        const char end[3] = {kind == '{' ? '}' : kind, '}', 0};
        size_t from = at + 2, to = from;
        while (to < n && strncmp(template + to, end, 2) != 0)
            to = kind != '#' && (template[to] == '\'' || template[to] == '"') ? skip_string(template, to, n)
                                                                              : to + 1;
        if (to >= n) return;
        if (kind != '#' && s->n_tags < TAGS_MAX) {
            if (s->n_tags == capacity) {
                capacity = capacity * 2 + 32;
                s->tags = buffer_realloc(s->tags, (size_t)capacity, sizeof *s->tags);
            }
            struct chat_tag *tag = &s->tags[s->n_tags++];
            memset(tag, 0, sizeof *tag);
            tag->at = at;
            tag->statement = kind == '%';
            read_tag(tag, template + from, to - from);
        }
        at = to + 2;
    }
}

void chat_scan_close(struct chat_scan *s)
{
    for (int i = 0; i < s->n_tags; i++)
        for (int k = 0; k < s->tags[i].n_terms; k++) free(s->tags[i].terms[k].literal);
    free(s->tags);
    *s = (struct chat_scan){0};
}

char *chat_tag_literal(const struct chat_tag *tag)
{
    struct buffer out = {0};
    for (int i = 0; i < tag->n_terms; i++)
        if (tag->terms[i].kind != CHAT_TERM_LITERAL) return NULL;
    if (!tag->n_terms || tag->has_other) return NULL;
    for (int i = 0; i < tag->n_terms; i++) buffer_append_string(&out, tag->terms[i].literal);
    return buffer_take(&out);
}

int chat_tag_count(const struct chat_tag *tag, enum chat_term_kind kind, int *first)
{
    int count = 0;
    *first = -1;
    for (int i = 0; i < tag->n_terms; i++) {
        if (tag->terms[i].kind != kind) continue;
        if (!count++) *first = i;
    }
    return count;
}

bool chat_tag_mentions(const struct chat_tag *tag, const char *text)
{
    for (int i = 0; i < tag->n_terms; i++)
        if (tag->terms[i].kind == CHAT_TERM_LITERAL && strstr(tag->terms[i].literal, text)) return true;
    return false;
}
