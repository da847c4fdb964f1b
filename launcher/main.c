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
    {"eval", CMD_EVAL, cmd_eval, true, "measure a policy on given tokens: nll, exposure, bytes read, logits"},
    {"check", CMD_CHECK, cmd_check, true, "run every op of a real step on two devices and compare"},
    {"info", CMD_INFO, cmd_info, false, "what is in a model folder and how it would be sharded"},
    {"tokenize", CMD_TOKENIZE, cmd_tokenize, false, "text on standard input to token ids, or back"},
};

static const int n_commands = sizeof commands / sizeof *commands;

static void print_usage(FILE *f)
{
    fprintf(f, "usage: retro COMMAND --model DIR [options]      alone, or under mpirun or srun\n\n");
    for (int i = 0; i < n_commands; i++) fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].what);
    fprintf(f, "\nretro COMMAND --help shows a command's options; retro help config prints them all as a "
               "config file\n");
}

static const struct command *find_command(const char *name)
{
    for (int i = 0; i < n_commands; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

/* help [COMMAND | config], --help, --version. Returns false when argv is none of them. */
static bool told_help(int argc, char **argv)
{
    if (strcmp(argv[1], "--version") == 0) {
        printf("retro %s\n", RETRO_VERSION);
        return true;
    }
    if (strcmp(argv[1], "help") != 0 && strcmp(argv[1], "--help") != 0 && strcmp(argv[1], "-h") != 0)
        return false;
    const struct command *c = argc > 2 ? find_command(argv[2]) : NULL;
    if (argc > 2 && strcmp(argv[2], "config") == 0) options_print_config(stdout);
    else if (c) options_print_help(stdout, c->bit);
    else print_usage(stdout);
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

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return EXIT_CODE_OPTION;
    }
    if (told_help(argc, argv)) return EXIT_CODE_OK;
    const struct command *c = find_command(argv[1]);
    if (!c) {
        LOG_ERROR("%s: no such command: see retro help", argv[1]);
        return EXIT_CODE_OPTION;
    }
    struct comm_world w;
    struct options o;
    struct reason why;
    enum status status = options_parse(&o, c->bit, argc, argv, 2, &why);
    /* The others have the same arguments: rank 0 speaks for all. */
    boot_open(&w, o.start_timeout);
    int code = status == STATUS_OK ? run(c, &o, &w) : session_fail(&w, status, &why);
    code = boot_close(code);
    options_close(&o);
    return code;
}
