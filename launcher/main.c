/* main.c - `retro COMMAND [options]`: the table of commands, help, and nothing else. */
#include <stdio.h>
#include <string.h>

#include "launcher/boot.h"
#include "launcher/commands.h"
#include "launcher/session.h"
#include "runtime/base/die.h"

static const struct command {
    const char *name;
    int bit;
    int (*run)(const struct options *o, const struct comm_world *w);
    bool ranks; /* makes sense under mpirun; the others run on rank 0 alone */
    const char *what;
} commands[] = {
    {"generate", CMD_GENERATE, cmd_generate, true, "continue a prompt, or answer a chat message"},
    {"serve", CMD_SERVE, cmd_serve, true, "answer requests over HTTP: OpenAI's API, metrics, a page"},
    {"batch", CMD_BATCH, cmd_batch, true, "a file of requests to a file of results; continues after any end"},
    {"eval", CMD_EVAL, cmd_eval, true, "measure a policy on given tokens: nll, exposure, bytes read, logits"},
    {"doctor", CMD_DOCTOR, cmd_doctor, true, "is this a place to run on? every rank looks and measures"},
    {"check", CMD_CHECK, cmd_check, true, "run every op of a real step on two devices and compare"},
    {"bench decode", CMD_BENCH_DECODE, cmd_bench_decode, true,
     "tokens/s by context and batch, beside the memory floor"},
    {"bench prefill", CMD_BENCH_PREFILL, cmd_bench_prefill, true, "prompt tokens/s by length"},
    {"bench kernels", CMD_BENCH_KERNELS, cmd_bench_kernels, true,
     "GEMM and attention against plain reading, GB/s"},
    {"bench allreduce", CMD_BENCH_ALLREDUCE, cmd_bench_allreduce, true, "time of an all-reduce by size"},
    {"bench serve", CMD_BENCH_SERVE, cmd_bench_serve, false,
     "load on a running server: TTFT, TPOT, ITL, goodput"},
    {"plan", CMD_PLAN, cmd_plan, false,
     "will it fit and how fast: from config.json alone, for a named GPU and link"},
    {"info", CMD_INFO, cmd_info, false, "what is in a model folder and how it would be sharded"},
    {"tokenize", CMD_TOKENIZE, cmd_tokenize, false, "text on standard input to token ids, or back"},
};

static const int n_commands = sizeof commands / sizeof *commands;

/* Of a command of two words: is `word` its first? */
static bool begins_with(const struct command *c, const char *word)
{
    size_t length = strlen(word);
    return strncmp(c->name, word, length) == 0 && c->name[length] == ' ';
}

/* All commands, or those that begin with `word`. False when there are none. */
static bool print_usage(FILE *f, const char *word)
{
    int n = 0;
    for (int i = 0; i < n_commands; i++) {
        if (word && !begins_with(&commands[i], word)) continue;
        if (n++ == 0)
            fprintf(f, "usage: retro COMMAND --model DIR [options]      alone, or under mpirun or srun\n\n");
        fprintf(f, "  %-15s %s\n", commands[i].name, commands[i].what);
    }
    if (n == 0) return false;
    fprintf(f, "\nretro COMMAND --help shows a command's options; retro help config prints them all as a "
               "config file\n");
    return true;
}

/* A command's name is one word or two; *n_words of argv[1 ...] are it. */
static const struct command *find_command(int argc, char **argv, int *n_words)
{
    for (int i = 0; i < n_commands; i++) {
        const char *name = commands[i].name, *blank = strchr(name, ' ');
        size_t first = blank ? (size_t)(blank - name) : strlen(name);
        *n_words = blank ? 2 : 1;
        if (argc <= *n_words || strlen(argv[1]) != first || memcmp(argv[1], name, first) != 0) continue;
        if (!blank || strcmp(argv[2], blank + 1) == 0) return &commands[i];
    }
    return NULL;
}

/* "bench: decode, prefill, ...", when the first word alone begins several commands. */
static bool named_second_words(const char *word, char *text, size_t size)
{
    size_t n = 0;
    for (int i = 0; i < n_commands; i++)
        if (begins_with(&commands[i], word) && n < size)
            n += (size_t)snprintf(text + n, size - n, "%s%s", n ? ", " : "",
                                  strchr(commands[i].name, ' ') + 1);
    return n > 0;
}

static int refuse_command(const char *name)
{
    char words[256];
    if (named_second_words(name, words, sizeof words))
        LOG_ERROR("retro %s needs a second word: %s", name, words);
    else LOG_ERROR("%s: no such command: see retro help", name);
    return EXIT_CODE_OPTION;
}

static bool is_help(const char *word) { return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0; }

/* help [COMMAND | config], --help, bench --help, --version. Returns false when argv is none of them. */
static bool told_help(int argc, char **argv, int *code)
{
    *code = EXIT_CODE_OK;
    if (strcmp(argv[1], "--version") == 0) {
        printf("retro %s\n", RETRO_VERSION);
        return true;
    }
    if (strcmp(argv[1], "help") != 0 && !is_help(argv[1]))
        return argc == 3 && is_help(argv[2]) && print_usage(stdout, argv[1]);
    int n_words;
    const struct command *c = argc > 2 ? find_command(argc - 1, argv + 1, &n_words) : NULL;
    if (argc > 2 && strcmp(argv[2], "config") == 0) options_print_config(stdout);
    else if (c) options_print_help(stdout, c->bit);
    else if (argc > 2 && (argc > 3 || !print_usage(stdout, argv[2]))) *code = refuse_command(argv[2]);
    else if (argc == 2) print_usage(stdout, NULL);
    return true;
}

static int run(const struct command *c, const struct options *o, const struct comm_world *w)
{
    struct reason why;
    if (o->help) {
        if (w->rank == 0) {
            printf("retro %s: %s\n", c->name, c->what);
            options_print_help(stdout, c->bit);
        }
        return EXIT_CODE_OK;
    }
    enum log_level level = (enum log_level)o->log_level;
    /* One rank tells how it goes, all tell what is wrong; in files all tell everything. */
    log_set_level(w->rank != 0 && level == LOG_LEVEL_INFO && !o->log_dir ? LOG_LEVEL_WARN : level);
    enum status status = boot_watch(w, o, c->ranks ? session_group_size(o, w) : 0, &why);
    if (status != STATUS_OK) return session_fail(w, status, &why);
    return c->ranks || w->rank == 0 ? c->run(o, w) : EXIT_CODE_OK;
}

/* A result that nobody could read is no success. */
static int written(int code)
{
    if (code != EXIT_CODE_OK || (fflush(stdout) == 0 && !ferror(stdout))) return code;
    LOG_ERROR("standard output: could not be written");
    return status_exit_code(STATUS_IO);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr, NULL);
        return EXIT_CODE_OPTION;
    }
    int code, n_words;
    if (told_help(argc, argv, &code)) return written(code);
    const struct command *c = find_command(argc, argv, &n_words);
    if (!c) return refuse_command(argv[1]);
    struct comm_world w;
    struct options o;
    struct reason why;
    enum status status = options_parse(&o, c->bit, argc, argv, 1 + n_words, &why);
    /* The others have the same arguments: rank 0 speaks for all. */
    boot_open(&w, o.start_timeout);
    code = status == STATUS_OK ? run(c, &o, &w) : session_fail(&w, status, &why);
    code = boot_close(written(code));
    options_close(&o);
    return code;
}
