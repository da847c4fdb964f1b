/* test_options.c - the command line and config files: each kind of bad value has its one line, and what wins
 * over what. What is true of every option is tested over options.def itself. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "runtime/options.h"

enum { WORDS_MAX = 64 };

static struct reason why;

/* Parses words up to NULL. The caller closes. */
static enum status parse(struct options *o, int command, ...)
{
    char *argv[WORDS_MAX] = {"retro", "command"};
    int argc = 2;
    va_list ap;
    va_start(ap, command);
    while ((argv[argc] = va_arg(ap, char *))) argc++;
    va_end(ap);
    why.text[0] = 0;
    return options_parse(o, command, argc, argv, 2, &why);
}

/* Refused, with a line that holds `part`. */
#define REFUSED(part, command, ...)                                                                          \
    do {                                                                                                     \
        struct options o_;                                                                                   \
        enum status s_ = parse(&o_, command, __VA_ARGS__, NULL);                                             \
        if (s_ != STATUS_BAD_OPTION) fail_msg("accepted: %s", #__VA_ARGS__);                                 \
        if (!strstr(why.text, part) || strchr(why.text, '\n'))                                               \
            fail_msg("%s: \"%s\" does not say \"%s\"", #__VA_ARGS__, why.text, part);                        \
        options_close(&o_);                                                                                  \
    } while (0)

static void accept(struct options *o, enum status s)
{
    (void)o;
    if (s != STATUS_OK) fail_msg("refused: %s", why.text);
}

/* A file with this text; its name is unlinked by drop_file. */
static char file_name[64];

static const char *file_of_bytes(const char *text, size_t n)
{
    strcpy(file_name, "/tmp/test_options_XXXXXX");
    int fd = mkstemp(file_name);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, n), n);
    close(fd);
    return file_name;
}

static const char *file_of(const char *text) { return file_of_bytes(text, strlen(text)); }

static void drop_file(void) { unlink(file_name); }

/* ---- over the whole table */

struct row {
    const char *kind, *flag, *initial, *range, *value;
    int commands;
};

static const struct row rows[] = {
#define GROUP(title)
#define OPTION(kind_, field, flag_, initial_, range_, value_, commands_, help_)                              \
    {#kind_, flag_, initial_, range_, value_, commands_},
#include "runtime/options.def"
#undef OPTION
#undef GROUP
};

enum { N_ROWS = sizeof rows / sizeof *rows };

static int first_command(const struct row *r) { return r->commands & -r->commands; }

static int is_number(const struct row *r)
{
    return strcmp(r->kind, "INT") == 0 || strcmp(r->kind, "REAL") == 0;
}

static void every_number_has_its_range(void **state)
{
    (void)state;
    int n = 0;
    for (int i = 0; i < N_ROWS; i++) {
        const struct row *r = &rows[i];
        if (!is_number(r)) continue;
        double low, high;
        char flag[64], word[64];
        snprintf(flag, sizeof flag, "--%s", r->flag);
        const char *dots = strstr(r->range, "..");
        assert_non_null(dots);
        low = strtod(r->range, NULL);
        high = strtod(dots + 2, NULL);
        assert_true(low < high);
        static const char *const junk[] = {"",   "x",   "1x",  "1 2",   " 1", "1 ",
                                           "--", "nan", "inf", "1e999", "0x", "1,5"};
        for (size_t j = 0; j < sizeof junk / sizeof *junk; j++)
            REFUSED(r->range, first_command(r), flag, junk[j]);
        snprintf(word, sizeof word, "%.17g", high + (high > 1e6 ? 1 : 0.001 + (r->kind[0] == 'I')));
        if (r->kind[0] == 'I') snprintf(word, sizeof word, "%.0f", high + 1);
        REFUSED(r->range, first_command(r), flag, word);
        snprintf(word, sizeof word, r->kind[0] == 'I' ? "%.0f" : "%g",
                 r->kind[0] == 'I' ? low - 1 : low / 2 - 1e-9);
        REFUSED(r->range, first_command(r), flag, word);
        REFUSED(r->range, first_command(r), flag, "99999999999999999999999");
        if (r->kind[0] == 'I') REFUSED("whole", first_command(r), flag, "1.5");
        struct options o;
        const double ends[] = {low, high};
        for (int j = 0; j < 2; j++) {
            snprintf(word, sizeof word, "%.17g", ends[j]);
            accept(&o, parse(&o, first_command(r), flag, word, NULL));
            options_close(&o);
        }
        n++;
    }
    assert_true(n > 20);
}

static void every_choice_lists_what_is_possible(void **state)
{
    (void)state;
    for (int i = 0; i < N_ROWS; i++) {
        const struct row *r = &rows[i];
        if (strcmp(r->kind, "CHOICE") != 0) continue;
        char flag[64], list[128];
        snprintf(flag, sizeof flag, "--%s", r->flag);
        static const char *const junk[] = {"", "nothing", "|", "0"};
        for (size_t j = 0; j < sizeof junk / sizeof *junk; j++)
            REFUSED(r->range, first_command(r), flag, junk[j]);
        REFUSED(r->range, first_command(r), flag, r->range); /* the whole list is no choice */
        snprintf(list, sizeof list, "%s", r->range);
        for (char *word = strtok(list, "|"); word; word = strtok(NULL, "|")) {
            struct options o;
            accept(&o, parse(&o, first_command(r), flag, word, NULL));
            options_close(&o);
        }
    }
}

static void every_option_only_where_it_is_taken(void **state)
{
    (void)state;
    for (int i = 0; i < N_ROWS; i++)
        for (int command = 1; command <= CMD_CHECK; command <<= 1) {
            char flag[64];
            int taken = 0;
            snprintf(flag, sizeof flag, "--%s", rows[i].flag);
            for (int j = 0; j < N_ROWS; j++)
                taken |= strcmp(rows[j].flag, rows[i].flag) == 0 && (rows[j].commands & command);
            if (!taken) REFUSED("not an option of this command", command, flag, "1");
            else if (strcmp(rows[i].kind, "FLAG") != 0) REFUSED("needs a value", command, flag);
        }
}

static void every_option_is_in_the_help_of_its_commands(void **state)
{
    (void)state;
    for (int command = 1; command <= CMD_CHECK; command <<= 1) {
        char *text;
        size_t size;
        FILE *f = open_memstream(&text, &size);
        options_print_help(f, command);
        fclose(f);
        for (int i = 0; i < N_ROWS; i++) {
            char flag[64];
            snprintf(flag, sizeof flag, "  --%s %s", rows[i].flag, rows[i].value);
            if (rows[i].commands & command) assert_non_null(strstr(text, flag));
        }
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
            if (strlen(line) > 110 || line[strlen(line) - 1] == ' ') fail_msg("\"%s\"", line);
        }
        free(text);
    }
}

/* ---- words */

static void defaults(void **state)
{
    (void)state;
    struct options o;
    struct policy p;
    accept(&o, parse(&o, CMD_GENERATE, NULL));
    assert_null(o.model);
    assert_int_equal(o.threads, OPTIONS_UNSET);
    assert_int_equal(o.kv_budget_tokens, OPTIONS_UNSET);
    assert_int_equal(o.policy, POLICY_RETRO);
    assert_int_equal(o.kv_dtype, DTYPE_BF16);
    assert_int_equal(o.max_tokens, 256);
    assert_int_equal(o.stop.n_items, 0);
    assert_false(o.chat || o.given.window || o.given.model);
    accept(&o, options_policy(&o, &p, &why));
    assert_int_equal(p.kind, POLICY_RETRO);
    assert_int_equal(p.window, 2);
    assert_true(p.kv_budget == 0.197 && p.score_alpha == 0.15f);
    assert_int_equal(p.kv_budget_tokens, 0);
    assert_int_equal(p.dense_layers, 0);
    assert_int_equal(o.page_size, 4);
    assert_int_equal(options_summary(&o), SUMMARY_Q4);
    assert_int_equal(p.score_group, SCORE_GROUP_SOFTMAX);
    assert_int_equal(p.sink_pages, 1);
    options_close(&o);
}

static void words_in_every_form(void **state)
{
    (void)state;
    struct options o;
    accept(&o,
           parse(&o, CMD_GENERATE, "--window", "4", "--kv-budget=0.5", "--chat", "--prompt",
                 "--not an option", "--stop=a=b", "--stop", "", "--system=", "--seed", "2147483647", NULL));
    assert_int_equal(o.window, 4);
    assert_true(o.kv_budget == 0.5 && o.chat && o.given.window && o.given.chat && !o.given.policy);
    assert_string_equal(o.prompt, "--not an option");
    assert_int_equal(o.stop.n_items, 2);
    assert_string_equal(o.stop.item[0], "a=b");
    assert_string_equal(o.stop.item[1], "");
    assert_string_equal(o.system, "");
    assert_int_equal(o.seed, 2147483647);
    options_close(&o);
    accept(&o, parse(&o, CMD_EVAL, "--prompt", "77", "--greedy=false", "--json=true", NULL));
    assert_int_equal(o.prompt_tokens, 77);
    assert_true(o.json && !o.greedy && !o.prompt);
    options_close(&o);
}

static void bad_words(void **state)
{
    (void)state;
    REFUSED("word: unexpected", CMD_GENERATE, "word");
    REFUSED("-w: unexpected", CMD_GENERATE, "-w", "4");
    REFUSED("--: unexpected", CMD_GENERATE, "--");
    REFUSED("--windows: no such option", CMD_GENERATE, "--windows", "4");
    REFUSED("--windo: no such option", CMD_GENERATE, "--windo=4");
    REFUSED("no such option", CMD_GENERATE, "--=4");
    REFUSED("--window: given twice", CMD_GENERATE, "--window", "4", "--window", "4");
    REFUSED("--chat: given twice", CMD_GENERATE, "--chat", "--chat");
    REFUSED("--chat=yes: expected true or false", CMD_GENERATE, "--chat=yes");
    REFUSED("--seed: needs a value", CMD_GENERATE, "--seed");
    REFUSED("--dump-logits: not an option of this command", CMD_GENERATE, "--dump-logits", "f");
    REFUSED("--model: is empty", CMD_GENERATE, "--model", "");
    char *argv[WORDS_MAX] = {"retro", "generate"};
    for (int i = 2; i < 2 + OPTIONS_LIST_MAX + 1; i++) argv[i] = "--stop=x";
    struct options o;
    assert_int_equal(options_parse(&o, CMD_GENERATE, 2 + OPTIONS_LIST_MAX, argv, 2, &why), STATUS_OK);
    assert_int_equal(o.stop.n_items, OPTIONS_LIST_MAX);
    options_close(&o);
    assert_int_equal(options_parse(&o, CMD_GENERATE, 3 + OPTIONS_LIST_MAX, argv, 2, &why), STATUS_BAD_OPTION);
    assert_non_null(strstr(why.text, "more than 16 times"));
    options_close(&o);
}

static void policies_that_cannot_be(void **state)
{
    (void)state;
    static const char *const bad[][5] = {
        {"--page-size", "5", NULL, NULL, "--page-size 5"},
        {"--page-size", "12", NULL, NULL, "4, 8, 16 or 32"},
        {"--block-size", "40", "--page-size", "16", "multiple of --page-size 16"},
        {"--block-size", "4", "--page-size", "8", "multiple of --page-size 8"},
        {"--kv-budget", "0.5", "--kv-budget-tokens", "9", "give one of them"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct options o;
        struct policy p;
        accept(&o, parse(&o, CMD_GENERATE, bad[i][0], bad[i][1], bad[i][2], bad[i][3], NULL));
        assert_int_equal(options_policy(&o, &p, &why), STATUS_BAD_OPTION);
        assert_non_null(strstr(why.text, bad[i][4]));
        options_close(&o);
    }
    struct options o;
    struct policy p;
    accept(&o, parse(&o, CMD_GENERATE, "--policy", "quest", "--kv-budget-tokens", "64", NULL));
    accept(&o, options_policy(&o, &p, &why));
    assert_int_equal(p.kind, POLICY_QUEST);
    assert_int_equal(p.window, 1); /* only retro revises */
    assert_int_equal(p.kv_budget_tokens, 64);
    options_close(&o);
}

static void preset_of_the_paper(void **state)
{
    (void)state;
    struct options o;
    accept(&o, parse(&o, CMD_EVAL, "--preset", "paper", NULL));
    assert_true(o.score_alpha == 1 && o.kv_budget == 0.15);
    assert_int_equal(o.score_group, SCORE_GROUP_MAX);
    assert_int_equal(o.sink_pages, 0);
    assert_int_equal(o.page_size, 16);
    assert_int_equal(o.dense_layers, 2);
    assert_int_equal(o.window, 2);
    options_close(&o);
    /* What is given beside it wins, before or after, on the command line or in a file. */
    const char *file = file_of("sink-pages = 3\npage-size = 8\n");
    accept(&o, parse(&o, CMD_EVAL, "--score-alpha", "0.3", "--preset", "paper", "--dense-layers", "0",
                     "--config", file, NULL));
    assert_true(o.score_alpha == 0.3);
    assert_int_equal(o.dense_layers, 0);
    assert_int_equal(o.sink_pages, 3);
    assert_int_equal(o.page_size, 8);
    assert_int_equal(o.score_group, SCORE_GROUP_MAX);
    options_close(&o);
    drop_file();
    accept(&o, parse(&o, CMD_EVAL, "--preset=ours", NULL));
    assert_true(o.score_alpha == 0.15);
    options_close(&o);
}

static enum summary_type summary_of(const char *a, const char *b, const char *c, const char *d)
{
    struct options o;
    struct policy p;
    accept(&o, parse(&o, CMD_GENERATE, a, b, c, d, NULL));
    accept(&o, options_policy(&o, &p, &why));
    enum summary_type t = options_summary(&o);
    options_close(&o);
    return t;
}

static void summaries_follow_page_and_alpha(void **state)
{
    (void)state;
    assert_int_equal(summary_of("--page-size", "4", NULL, NULL), SUMMARY_Q4);
    assert_int_equal(summary_of("--page-size", "8", NULL, NULL), SUMMARY_Q8);
    assert_int_equal(summary_of("--page-size", "16", NULL, NULL), SUMMARY_BF16);
    assert_int_equal(summary_of("--page-size", "16", "--kv-dtype", "f32"), SUMMARY_F32);
    assert_int_equal(summary_of("--page-size", "16", "--summary", "q4"), SUMMARY_Q4);
    assert_int_equal(summary_of("--page-size", "4", "--summary", "keys"), SUMMARY_BF16);
    assert_int_equal(summary_of("--page-size", "4", "--score-alpha", "1"), SUMMARY_BF16);
    assert_int_equal(summary_of("--preset", "paper", "--kv-dtype", "f16"), SUMMARY_F16);
    struct options o;
    struct policy p;
    accept(&o, parse(&o, CMD_GENERATE, "--preset", "paper", "--summary", "q8", NULL));
    assert_int_equal(options_policy(&o, &p, &why), STATUS_BAD_OPTION);
    assert_non_null(strstr(why.text, "--summary keys"));
    options_close(&o);
}

/* ---- config files */

static void file_under_the_command_line(void **state)
{
    (void)state;
    struct options o;
    const char *file =
        file_of("; a comment\n# another\n\n[retro]\nwindow = 8\nkv-budget=0.25  ; why not\n"
                "policy = quest\nchat = true\nstop = one\nstop = two words\ndump-logits = f\nseed: 5\n");
    accept(&o, parse(&o, CMD_GENERATE, "--config", file, "--policy", "dense", NULL));
    assert_int_equal(o.window, 8);
    assert_true(o.kv_budget == 0.25 && o.chat && o.given.window && o.given.chat);
    assert_true(o.typed.policy && !o.typed.window && !o.typed.chat);
    assert_int_equal(o.policy, POLICY_DENSE); /* the command line */
    assert_int_equal(o.stop.n_items, 2);
    assert_string_equal(o.stop.item[1], "two words");
    assert_int_equal(o.seed, 5);
    assert_null(o.dump_logits); /* eval's */
    options_close(&o);
    accept(&o, parse(&o, CMD_GENERATE, "--stop", "mine", "--config", file, NULL));
    assert_int_equal(o.stop.n_items, 1); /* a list on the command line replaces the file's */
    assert_string_equal(o.stop.item[0], "mine");
    options_close(&o);
    accept(&o, parse(&o, CMD_EVAL, "--config", file, NULL));
    assert_string_equal(o.dump_logits, "f");
    options_close(&o);
    drop_file();
}

static void either_budget_wins_over_the_file(void **state)
{
    (void)state;
    struct options o;
    struct policy p;
    const char *file = file_of("kv-budget = 0.25\n");
    accept(&o, parse(&o, CMD_EVAL, "--kv-budget-tokens", "64", "--config", file, NULL));
    accept(&o, options_policy(&o, &p, &why));
    assert_int_equal(p.kv_budget_tokens, 64);
    options_close(&o);
    drop_file();
    file = file_of("kv-budget-tokens = 32\n");
    accept(&o, parse(&o, CMD_EVAL, "--kv-budget", "0.5", "--config", file, NULL));
    accept(&o, options_policy(&o, &p, &why));
    assert_int_equal(p.kv_budget_tokens, 0);
    assert_true(p.kv_budget == 0.5);
    options_close(&o);
    drop_file();
}

static void bad_files(void **state)
{
    (void)state;
    char text[1000] = "seed = 1\nsystem = ";
    const char *const bad[][2] = {
        {"window = 4\nwindows = 5\n", ":2: windows: no such option"},
        {"greedy = true\n\nwindow = 0\n", ":3: --window 0: out of range"},
        {"window = four\n", ":1: --window four: not a whole number"},
        {"window =\n", ":1: --window : not a whole number"},
        {"policy = sparse\n", "expected one of dense|quest|retro"},
        {"chat = yes\n", "expected true or false"},
        {"window = 4\nwindow = 4\n", ":2: window: given twice"},
        {"system = be\n  brief = 1\n", ":2: system: given twice"}, /* inih takes it as a continuation */
        {"window\n", ":1: expected `name = value`"},
        {"window = 4\nno sense here\npolicy = no\n", ":2: expected `name = value`"},
        {"[eval]\ngreedy = true\n", ":2: section [eval]"},
        {"[retro\nwindow = 4\n", ":1: expected"},
        {"prompt = 512\n", ":1: prompt: only on the command line"},
        {"config = other\n", ":1: config: only on the command line"},
        {"help = true\n", ":1: help: only on the command line"},
        {"windows = 5\nchat = yes\n", ":1: windows"}, /* the first fault is told */
        {text, ":2: longer than 198 characters"},
    };
    memset(text + strlen(text), 'x', 300);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *file = file_of(bad[i][0]);
        REFUSED(bad[i][1], CMD_GENERATE, "--config", file);
        assert_memory_equal(why.text, file, strlen(file));
        drop_file();
    }
    static const char nul[] = "window = 4\nsystem = be\0brief\n", late[] = "window = 4\n\0";
    REFUSED(":2: has a NUL byte", CMD_GENERATE, "--config", file_of_bytes(nul, sizeof nul - 1));
    drop_file();
    REFUSED(":2: has a NUL byte", CMD_GENERATE, "--config", file_of_bytes(late, sizeof late - 1));
    drop_file();
    REFUSED("--config /nowhere/at/all: No such file", CMD_GENERATE, "--config", "/nowhere/at/all");
    REFUSED("--config /tmp: Is a directory", CMD_GENERATE, "--config", "/tmp");
    struct options o;
    accept(&o, parse(&o, CMD_GENERATE, "--config", file_of(""), NULL));
    options_close(&o);
    drop_file();
}

/* ---- configs/default.conf */

static char *generated(void)
{
    char *text;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    options_print_config(f);
    fclose(f);
    return text;
}

static void default_conf_is_what_the_table_says(void **state)
{
    (void)state;
    char *text = generated(), stored[65536];
    FILE *f = fopen("configs/default.conf", "r");
    assert_non_null(f);
    size_t n = fread(stored, 1, sizeof stored - 1, f);
    fclose(f);
    stored[n] = 0;
    if (strcmp(stored, text) != 0) fail_msg("run: build/retro help config > configs/default.conf");
    struct options o;
    accept(&o, parse(&o, CMD_GENERATE, "--config", "configs/default.conf", NULL));
    assert_false(o.given.window || o.given.kv_budget); /* nothing is switched on */
    options_close(&o);
    free(text);
}

/* Field by field: what lies between them is anything. */
static void assert_same_policy(const struct policy *p, const struct policy *q)
{
    assert_int_equal(p->kind, q->kind);
    assert_int_equal(p->window, q->window);
    assert_true(p->kv_budget == q->kv_budget && p->score_alpha == q->score_alpha);
    assert_int_equal(p->kv_budget_tokens, q->kv_budget_tokens);
    assert_int_equal(p->dense_layers, q->dense_layers);
    assert_int_equal(p->score_group, q->score_group);
    assert_int_equal(p->sink_pages, q->sink_pages);
}

/* With every default switched on each command still runs with its defaults, and with a preset or a budget. */
static void uncommented_it_changes_nothing(void **state)
{
    (void)state;
    char *text = generated(), *on = calloc(strlen(text) + 2, 1);
    assert_non_null(on);
    int n = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char flag[64];
        if (sscanf(line, "; %63s = ", flag) != 1) continue;
        for (int i = 0; i < N_ROWS; i++)
            if (strcmp(rows[i].flag, flag) == 0 && rows[i].initial[0]) {
                strcat(strcat(on, line + 2), "\n");
                n++;
            }
    }
    assert_true(n > 15);
    const char *file = file_of(on);
    for (int command = 1; command <= CMD_CHECK; command <<= 1) {
        struct options o, plain;
        struct policy p, q;
        accept(&o, parse(&o, command, "--config", file, NULL));
        accept(&plain, parse(&plain, command, NULL));
        accept(&o, options_policy(&o, &p, &why));
        accept(&plain, options_policy(&plain, &q, &why));
        assert_same_policy(&p, &q);
        assert_int_equal(o.max_tokens, plain.max_tokens);
        assert_true(o.top_p == plain.top_p && o.temperature == plain.temperature);
        assert_null(o.prompt);
        options_close(&o);
        options_close(&plain);
    }
    drop_file();
    free(on);
    free(text);
}

static void lists_of_whole_numbers(void **state)
{
    (void)state;
    struct option_ints v;
    assert_int_equal(options_ints(&v, "contexts", "0,2048,32768", 0, 40000, &why), STATUS_OK);
    assert_int_equal(v.n, 3);
    assert_int_equal(v.value[0] + v.value[1] + v.value[2], 34816);
    static const char *const bad[] = {"",     ",",  "1,",    ",1", "1,,2", "1 ,2",
                                      "1, 2", "-1", "40001", "x",  "1x",   "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(options_ints(&v, "contexts", bad[i], 0, 40000, &why), STATUS_BAD_OPTION);
        assert_non_null(strstr(why.text, "--contexts"));
        assert_non_null(strstr(why.text, "0..40000"));
    }
    char many[4 * OPTIONS_INTS_MAX + 8] = "1";
    for (int i = 1; i < OPTIONS_INTS_MAX; i++) strcat(many, ",1");
    assert_int_equal(options_ints(&v, "rows", many, 1, 1, &why), STATUS_OK);
    strcat(many, ",1");
    assert_int_equal(options_ints(&v, "rows", many, 1, 1, &why), STATUS_BAD_OPTION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_number_has_its_range),
        cmocka_unit_test(every_choice_lists_what_is_possible),
        cmocka_unit_test(every_option_only_where_it_is_taken),
        cmocka_unit_test(every_option_is_in_the_help_of_its_commands),
        cmocka_unit_test(defaults),
        cmocka_unit_test(words_in_every_form),
        cmocka_unit_test(bad_words),
        cmocka_unit_test(policies_that_cannot_be),
        cmocka_unit_test(preset_of_the_paper),
        cmocka_unit_test(summaries_follow_page_and_alpha),
        cmocka_unit_test(file_under_the_command_line),
        cmocka_unit_test(either_budget_wins_over_the_file),
        cmocka_unit_test(bad_files),
        cmocka_unit_test(lists_of_whole_numbers),
        cmocka_unit_test(default_conf_is_what_the_table_says),
        cmocka_unit_test(uncommented_it_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
