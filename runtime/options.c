#include "runtime/options.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/die.h"

enum kind { KIND_STRING, KIND_INT, KIND_REAL, KIND_FLAG, KIND_CHOICE, KIND_LIST };

struct row {
    enum kind kind;
    const char *flag, *initial, *range, *value, *help, *group;
    int commands;
    size_t offset, given_offset;
};

/* A GROUP line becomes a row without a flag. */
static const struct row table[] = {
#define GROUP(title) {.group = title},
#define OPTION(kind_, field, flag_, initial_, range_, value_, commands_, help_)                              \
    {.kind = KIND_##kind_,                                                                                   \
     .flag = flag_,                                                                                          \
     .initial = initial_,                                                                                    \
     .range = range_,                                                                                        \
     .value = value_,                                                                                        \
     .commands = commands_,                                                                                  \
     .help = help_,                                                                                          \
     .offset = offsetof(struct options, field),                                                              \
     .given_offset = offsetof(struct options, given.field)},
#include "runtime/options.def"
#undef OPTION
#undef GROUP
};

static const int n_rows = sizeof table / sizeof *table;

static bool *given(struct options *o, const struct row *r) { return (bool *)((char *)o + r->given_offset); }

/* Row of a flag that the command takes (two commands may give one flag different meanings); NULL when none.
 */
static const struct row *find(const char *flag, size_t n, int command)
{
    for (int i = 0; i < n_rows; i++)
        if (table[i].flag && strlen(table[i].flag) == n && memcmp(table[i].flag, flag, n) == 0 &&
            (table[i].commands & command))
            return &table[i];
    return NULL;
}

/* Index of `text` in "a|b|c", or -1. */
static int choice_index(const char *range, const char *text)
{
    size_t n = strlen(text);
    int index = 0;
    for (const char *at = range; at; index++) {
        const char *end = strchr(at, '|');
        size_t length = end ? (size_t)(end - at) : strlen(at);
        if (length == n && memcmp(at, text, n) == 0) return index;
        at = end ? end + 1 : NULL;
    }
    return -1;
}

/* "low..high"; scanf's own number would swallow the first point. */
static void parse_range(const char *range, double *low, double *high)
{
    const char *dots = strstr(range, "..");
    ASSERT(dots);
    *low = *high = 0;
    ASSERT(sscanf(range, "%lf", low) == 1 && sscanf(dots + 2, "%lf", high) == 1);
}

static enum status set_number(void *field, const struct row *r, const char *text, struct reason *why)
{
    char *end;
    errno = 0;
    double v = r->kind == KIND_INT ? (double)strtoll(text, &end, 10) : strtod(text, &end);
    double low, high;
    parse_range(r->range, &low, &high);
    if (end == text || *end || isspace((unsigned char)text[0]) || errno || !isfinite(v))
        return status_fail(why, STATUS_BAD_OPTION, "--%s %s: not a%s number; expected %s", r->flag, text,
                           r->kind == KIND_INT ? " whole" : "", r->range);
    if (v < low || v > high)
        return status_fail(why, STATUS_BAD_OPTION, "--%s %s: out of range, expected %s", r->flag, text,
                           r->range);
    if (r->kind == KIND_INT) *(int *)field = (int)v;
    else *(double *)field = v;
    return STATUS_OK;
}

static char *copy_text(const char *text)
{
    char *copy = strdup(text);
    if (!copy) DIE(EXIT_CODE_MEMORY, NULL, "no memory for an option");
    return copy;
}

static enum status set_value(struct options *o, const struct row *r, const char *text, struct reason *why)
{
    void *field = (char *)o + r->offset;
    switch (r->kind) {
    case KIND_STRING:
        free(*(char **)field);
        *(char **)field = copy_text(text);
        return STATUS_OK;
    case KIND_LIST: {
        struct option_list *list = field;
        if (list->n_items == OPTIONS_LIST_MAX)
            return status_fail(why, STATUS_BAD_OPTION, "--%s: given more than %d times", r->flag,
                               OPTIONS_LIST_MAX);
        list->item[list->n_items++] = copy_text(text);
        return STATUS_OK;
    }
    case KIND_FLAG: {
        int yes = choice_index("false|true", text);
        if (yes < 0)
            return status_fail(why, STATUS_BAD_OPTION, "--%s=%s: expected true or false", r->flag, text);
        *(bool *)field = yes;
        return STATUS_OK;
    }
    case KIND_CHOICE: {
        int index = choice_index(r->range, text);
        if (index < 0)
            return status_fail(why, STATUS_BAD_OPTION, "--%s %s: expected one of %s", r->flag, text,
                               r->range);
        *(int *)field = index;
        return STATUS_OK;
    }
    case KIND_INT:
    case KIND_REAL: return set_number(field, r, text, why);
    }
    ASSERT(!"kind");
    return STATUS_BAD_OPTION;
}

static void set_defaults(struct options *o)
{
    *o = (struct options){0};
    for (int i = 0; i < n_rows; i++) {
        const struct row *r = &table[i];
        if (!r->flag) continue;
        void *field = (char *)o + r->offset;
        if (r->initial[0]) ASSERT(set_value(o, r, r->initial, NULL) == STATUS_OK);
        else if (r->kind == KIND_INT) *(int *)field = OPTIONS_UNSET;
        else if (r->kind == KIND_REAL) *(double *)field = OPTIONS_UNSET;
    }
}

/* The paper's own choices, where nothing was given beside the preset. */
static void apply_preset(struct options *o)
{
    if (o->preset == 0) return;
    if (!o->given.page_size) o->page_size = 16;
    if (!o->given.kv_budget && !o->given.kv_budget_tokens) o->kv_budget = 0.15;
    if (!o->given.dense_layers) o->dense_layers = 2;
    if (!o->given.score_alpha) o->score_alpha = 1;
    if (!o->given.score_group) o->score_group = SCORE_GROUP_MAX;
    if (!o->given.sink_pages) o->sink_pages = 0;
}

/* A name that the program knows but this command does not take deserves another line than a typing error. */
static enum status refuse_name(const char *dashes, const char *name, size_t n, struct reason *why)
{
    if (find(name, n, CMD_ALL))
        return status_fail(why, STATUS_BAD_OPTION, "%s%.*s: not an option of this command: see --help",
                           dashes, (int)n, name);
    return status_fail(why, STATUS_BAD_OPTION, "%s%.*s: no such option: see --help", dashes, (int)n, name);
}

/* One flag, two options of different commands (--prompt TEXT and --prompt N): a file that serves all commands
 * cannot say which is meant. */
static bool has_two_meanings(const char *flag)
{
    int n = 0;
    for (int i = 0; i < n_rows; i++) n += table[i].flag && strcmp(table[i].flag, flag) == 0;
    return n > 1;
}

static bool in_config(const struct row *r)
{
    return r->flag && strcmp(r->flag, "config") != 0 && strcmp(r->flag, "help") != 0 &&
           !has_two_meanings(r->flag);
}

struct config_reader {
    struct options *o;
    int command;
    bool command_line_given[sizeof table / sizeof *table];
    bool budget_given; /* one of the two budgets is on the command line: it wins over both of the file's */
    FILE *file;
    int line;
    enum status status; /* of `line`, the first bad value */
    struct reason why;
};

static enum status config_option(struct config_reader *c, const char *section, const char *name,
                                 const char *value)
{
    struct reason *why = &c->why;
    size_t n = strlen(name);
    if (section[0] && strcmp(section, "retro") != 0)
        return status_fail(why, STATUS_BAD_OPTION, "section [%s]: only [retro] is known", section);
    const struct row *known = find(name, n, CMD_ALL), *r = find(name, n, c->command);
    if (!known) return status_fail(why, STATUS_BAD_OPTION, "%s: no such option", name);
    if (!in_config(known)) return status_fail(why, STATUS_BAD_OPTION, "%s: only on the command line", name);
    if (!r || c->command_line_given[r - table])
        return STATUS_OK; /* another command's, or the command line wins */
    if (c->budget_given && (strcmp(name, "kv-budget") == 0 || strcmp(name, "kv-budget-tokens") == 0))
        return STATUS_OK;
    if (r->kind != KIND_LIST && *given(c->o, r))
        return status_fail(why, STATUS_BAD_OPTION,
                           "%s: given twice (a line that begins with a blank continues the one before)",
                           name);
    *given(c->o, r) = true;
    return set_value(c->o, r, value, why);
}

/* inih calls it for every `name = value` line; 0 makes this the line it reports. */
static int config_line(void *user, const char *section, const char *name, const char *value)
{
    struct config_reader *c = user;
    c->status = config_option(c, section, name, value);
    return c->status == STATUS_OK;
}

/* inih reads lines by it. Ends at the first bad value; inih would take the rest of a long line for another
 * line, and what is before a NUL for all of it. */
static char *read_line(char *text, int size, void *user)
{
    struct config_reader *c = user;
    int n = 0, byte = 0;
    if (c->status != STATUS_OK) return NULL;
    while (n + 1 < size && byte != '\n' && (byte = getc(c->file)) != EOF) text[n++] = (char)byte;
    text[n] = 0;
    if (n == 0) return NULL;
    c->line++;
    if (strlen(text) < (size_t)n) {
        c->status = status_fail(&c->why, STATUS_BAD_OPTION, "has a NUL byte");
        return NULL;
    }
    if (text[n - 1] == '\n' || n + 1 < size) return text;
    c->status = status_fail(&c->why, STATUS_BAD_OPTION, "longer than %d characters", size - 2);
    return NULL;
}

static enum status read_config(struct options *o, int command, struct reason *why)
{
    struct config_reader c = {
        .o = o, .command = command, .budget_given = o->given.kv_budget || o->given.kv_budget_tokens};
    for (int i = 0; i < n_rows; i++) c.command_line_given[i] = table[i].flag && *given(o, &table[i]);
    c.file = fopen(o->config, "r");
    if (!c.file) return status_fail(why, STATUS_BAD_OPTION, "--config %s: %s", o->config, strerror(errno));
    errno = 0;
    int syntax = ini_parse_stream(read_line, &c, config_line, &c), error = errno;
    bool unread = ferror(c.file); /* a folder opens and cannot be read */
    fclose(c.file);
    if (unread) return status_fail(why, STATUS_BAD_OPTION, "--config %s: %s", o->config, strerror(error));
    if (syntax < 0) DIE(EXIT_CODE_MEMORY, NULL, "no memory to read %s", o->config);
    if (syntax > 0 && (c.status == STATUS_OK || syntax < c.line))
        return status_fail(why, STATUS_BAD_OPTION, "%s:%d: expected `name = value`", o->config, syntax);
    if (c.status == STATUS_OK) return STATUS_OK;
    return status_fail(why, STATUS_BAD_OPTION, "%s:%d: %.400s", o->config, c.line, c.why.text);
}

enum status options_parse(struct options *o, int command, int argc, char **argv, int first,
                          struct reason *why)
{
    set_defaults(o);
    o->command = command;
    for (int i = first; i < argc; i++) {
        const char *arg = argv[i];
        if (strncmp(arg, "--", 2) != 0 || !arg[2])
            return status_fail(why, STATUS_BAD_OPTION, "%s: unexpected; options begin with --", arg);
        const char *equals = strchr(arg, '=');
        size_t n = equals ? (size_t)(equals - arg - 2) : strlen(arg + 2);
        const struct row *r = find(arg + 2, n, command);
        if (!r) return refuse_name("--", arg + 2, n, why);
        const char *value = equals ? equals + 1 : NULL;
        if (!value && r->kind == KIND_FLAG) value = "true";
        if (!value && i + 1 == argc)
            return status_fail(why, STATUS_BAD_OPTION, "--%s: needs a value, --%s %s", r->flag, r->flag,
                               r->value);
        if (!value) value = argv[++i];
        if (r->kind != KIND_LIST && *given(o, r))
            return status_fail(why, STATUS_BAD_OPTION, "--%s: given twice", r->flag);
        enum status status = set_value(o, r, value, why);
        if (status != STATUS_OK) return status;
        *given(o, r) = true;
    }
    o->typed = o->given;
    if (o->config) {
        enum status status = read_config(o, command, why);
        if (status != STATUS_OK) return status;
    }
    if (o->model && !o->model[0])
        return status_fail(why, STATUS_BAD_OPTION, "--model: is empty; a model folder is needed");
    apply_preset(o);
    return STATUS_OK;
}

void options_close(struct options *o)
{
    for (int i = 0; i < n_rows; i++) {
        if (!table[i].flag) continue;
        void *field = (char *)o + table[i].offset;
        if (table[i].kind == KIND_STRING) free(*(char **)field);
        if (table[i].kind != KIND_LIST) continue;
        struct option_list *list = field;
        for (int j = 0; j < list->n_items; j++) free(list->item[j]);
    }
    *o = (struct options){0};
}

/* `text` up to column 100; `column` is where the first line is, further ones begin with `start`. */
static void print_wrapped(FILE *f, const char *start, const char *text, int column)
{
    int n = column;
    if (n == 0) n = fprintf(f, "%s", start);
    for (bool first = true; *text; first = false) {
        size_t word = strcspn(text, " ");
        if (!first && n + 1 + (int)word > 100) n = fprintf(f, "\n%s", start) - 1;
        else if (!first) n += fprintf(f, " ");
        n += fprintf(f, "%.*s", (int)word, text);
        text += word + (text[word] == ' ');
    }
    fputc('\n', f);
}

void options_print_help(FILE *f, int command)
{
    const char *group = NULL, *printed = NULL;
    for (int i = 0; i < n_rows; i++) {
        const struct row *r = &table[i];
        if (r->group) group = r->group;
        if (!r->flag || !(r->commands & command)) continue;
        if (group != printed) fprintf(f, "\n%s\n", printed = group);
        int n = fprintf(f, "  --%s %s", r->flag, r->value);
        n += fprintf(f, "%*s", n < 28 ? 28 - n : 1, "");
        char text[512], more[128] = "", indent[29];
        snprintf(indent, sizeof indent, "%28s", "");
        if (r->range[0] && r->initial[0])
            snprintf(more, sizeof more, " (%s; default %s)", r->range, r->initial);
        else if (r->range[0]) snprintf(more, sizeof more, " (%s)", r->range);
        snprintf(text, sizeof text, "%s%s", r->help, more);
        print_wrapped(f, indent, text, n);
    }
}

void options_print_config(FILE *f)
{
    static const char *const head[] = {
        "Every option of retro that a config file may hold, with its default; made by `retro help config`.",
        "Take a copy, remove the ; before a line to change it, and give the copy with --config FILE. The "
        "command "
        "line wins over the file. An option that the command at hand does not take is skipped, so one file "
        "serves all commands; an unknown name, a bad value and a line over 198 characters are refused. A "
        "blank "
        "and a ; end a value."};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) print_wrapped(f, "# ", head[i], 0);
    for (int i = 0; i < n_rows; i++) {
        const struct row *r = &table[i];
        if (r->group) fprintf(f, "\n# ---- %s\n", r->group);
        if (!in_config(r)) continue;
        fputc('\n', f);
        char text[512];
        snprintf(text, sizeof text, "%s%s%s%s", r->help, r->range[0] ? " (" : "", r->range,
                 r->range[0] ? ")" : "");
        print_wrapped(f, "# ", text, 0);
        fprintf(f, "; %s = %s\n", r->flag,
                r->initial[0]          ? r->initial
                : r->kind == KIND_FLAG ? "true"
                                       : r->value);
    }
}

enum status options_ints(struct option_ints *out, const char *flag, const char *text, int low, int high,
                         struct reason *why)
{
    out->n = 0;
    for (const char *at = text; at;) {
        char *end;
        errno = 0;
        long v = strtol(at, &end, 10);
        bool number = end > at && !isspace((unsigned char)*at) && (*end == ',' || *end == 0) && !errno;
        if (!number || v < low || v > high)
            return status_fail(why, STATUS_BAD_OPTION,
                               "--%s %s: expected whole numbers in %d..%d with commas between them", flag,
                               text, low, high);
        if (out->n == OPTIONS_INTS_MAX)
            return status_fail(why, STATUS_BAD_OPTION, "--%s: more than %d numbers", flag, OPTIONS_INTS_MAX);
        out->value[out->n++] = (int)v;
        at = *end ? end + 1 : NULL;
    }
    return STATUS_OK;
}

enum summary_type options_summary(const struct options *o)
{
    enum { AUTO, KEYS, Q8, Q4 };
    int choice = o->summary;
    if (choice == AUTO) choice = o->score_alpha >= 1 || o->page_size > 8 ? KEYS : o->page_size == 8 ? Q8 : Q4;
    if (choice == Q8) return SUMMARY_Q8;
    if (choice == Q4) return SUMMARY_Q4;
    return o->kv_dtype == DTYPE_F32 ? SUMMARY_F32 : o->kv_dtype == DTYPE_F16 ? SUMMARY_F16 : SUMMARY_BF16;
}

enum status options_policy(const struct options *o, struct policy *p, struct reason *why)
{
    if (o->page_size != 4 && o->page_size != 8 && o->page_size != 16 && o->page_size != 32)
        return status_fail(why, STATUS_BAD_OPTION, "--page-size %d: expected 4, 8, 16 or 32", o->page_size);
    if (o->block_size % o->page_size != 0)
        return status_fail(why, STATUS_BAD_OPTION, "--block-size %d: must be a multiple of --page-size %d",
                           o->block_size, o->page_size);
    if (o->given.window && o->policy != POLICY_RETRO && o->window != 1)
        LOG_WARN("--window %d has no effect with --policy %s: only retro revises", o->window,
                 policy_kind_name((enum policy_kind)o->policy));
    if (o->given.kv_budget && o->given.kv_budget_tokens)
        return status_fail(why, STATUS_BAD_OPTION, "--kv-budget and --kv-budget-tokens: give one of them");
    if (o->score_alpha >= 1 && options_summary(o) >= SUMMARY_Q8)
        return status_fail(
            why, STATUS_BAD_OPTION,
            "--score-alpha 1: codes of --summary bound no score; give --summary keys or a smaller alpha");
    *p = (struct policy){
        .kind = (enum policy_kind)o->policy,
        .window = o->policy == POLICY_RETRO ? o->window : 1,
        .kv_budget = o->kv_budget,
        .kv_budget_tokens = o->kv_budget_tokens == OPTIONS_UNSET ? 0 : o->kv_budget_tokens,
        .dense_layers = o->dense_layers,
        .score_alpha = (float)o->score_alpha,
        .score_group = (enum score_group)o->score_group,
        .sink_pages = o->sink_pages,
    };
    return STATUS_OK;
}
