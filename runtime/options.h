/* options.h - the command line and config file as one struct, made from options.def.
 *
 * Order: defaults, then --preset, then --config FILE, then the command line. Unknown names, bad values,
 * values out of range, options that the command does not take and options given twice are refused with one
 * line that says what is possible. In a config file an option of another command is skipped; one whose flag
 * means different things to different commands is refused there. Nothing else in the program reads argv or
 * the environment (launcher/boot.c reads the launcher's). */
#ifndef RETRO_OPTIONS_H
#define RETRO_OPTIONS_H

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>

#include "runtime/base/status.h"
#include "runtime/policy.h"

/* One bit per command (the words of `retro bench` are commands of their own); the table of commands is in
 * launcher/main.c. */
enum {
    CMD_GENERATE = 1,
    CMD_EVAL = 2,
    CMD_INFO = 4,
    CMD_TOKENIZE = 8,
    CMD_CHECK = 16,
    CMD_BATCH = 1 << 9,
    CMD_SERVE = 1 << 8,
    CMD_SERVICE = CMD_BATCH | CMD_SERVE, /* many sequences side by side */
    CMD_BENCH_DECODE = 1 << 10,
    CMD_BENCH_PREFILL = 1 << 11,
    CMD_BENCH_KERNELS = 1 << 12,
    CMD_BENCH_ALLREDUCE = 1 << 13,
    CMD_DOCTOR = 1 << 14,
    CMD_PLAN = 1 << 15,
    CMD_BENCH_SERVE = 1 << 16, /* a client: no model of its own */
    CMD_BENCH_MODEL = CMD_BENCH_DECODE | CMD_BENCH_PREFILL | CMD_BENCH_KERNELS,
    CMD_BENCH = CMD_BENCH_MODEL | CMD_BENCH_ALLREDUCE,
    CMD_RUN = CMD_GENERATE | CMD_EVAL | CMD_SERVICE,
    CMD_SPARSE = CMD_RUN | CMD_CHECK | CMD_BENCH_DECODE | CMD_BENCH_KERNELS,
    CMD_ENGINE = CMD_SPARSE | CMD_BENCH_PREFILL,
    CMD_MODEL = CMD_ENGINE | CMD_INFO,
    CMD_RANKS = CMD_ENGINE | CMD_BENCH_ALLREDUCE | CMD_DOCTOR, /* may run on several ranks */
    CMD_ALL = CMD_MODEL | CMD_TOKENIZE | CMD_BENCH_ALLREDUCE | CMD_DOCTOR | CMD_PLAN | CMD_BENCH_SERVE,
    CMD_POLICY = 1 << 20, /* no command: the options of one sequence, as eval --also has them */
};

#define OPTIONS_UNSET INT_MIN
#define OPTIONS_LIST_MAX 16
#define OPTIONS_INTS_MAX 64

struct option_list {
    char *item[OPTIONS_LIST_MAX];
    int n_items;
};

#define OPTION_TYPE_STRING char *
#define OPTION_TYPE_INT int
#define OPTION_TYPE_REAL double
#define OPTION_TYPE_FLAG bool
#define OPTION_TYPE_CHOICE int
#define OPTION_TYPE_LIST struct option_list

struct options {
#define GROUP(title)
#define OPTION(kind, field, ...) OPTION_TYPE_##kind field; /* STRING: owned, NULL when not given */
#include "runtime/options.def"
#undef OPTION
#undef GROUP
    struct {
#define GROUP(title)
#define OPTION(kind, field, ...) bool field;
#include "runtime/options.def"
#undef OPTION
#undef GROUP
    } given, typed; /* given: on the command line or in the config file; typed: on the command line */
    int command;    /* its bit */
};

/* Parses argv[first..argc) for the command with bit `command`. Caller closes (also after a failure). */
enum status options_parse(struct options *o, int command, int argc, char **argv, int first,
                          struct reason *why);
void options_close(struct options *o);

/* --help of one command. */
void options_print_help(FILE *f, int command);
/* All options as a commented config file: what configs/default.conf holds. */
void options_print_config(FILE *f);

/* Several whole numbers in one value, "0,2048,32768", each in low..high: an option that sweeps. BAD_OPTION
 * names the flag. */
struct option_ints {
    int value[OPTIONS_INTS_MAX];
    int n;
};
enum status options_ints(struct option_ints *out, const char *flag, const char *text, int low, int high,
                         struct reason *why);

/* How page summaries are stored: --summary, where `auto` is resolved by alpha and page size. */
enum summary_type options_summary(const struct options *o);
/* The sequence policy that the options name, after checks that need several of them. */
enum status options_policy(const struct options *o, struct policy *p, struct reason *why);

#endif
