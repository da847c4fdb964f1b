/* text.h - whole files and lists of ids as commands read them. */
#ifndef RETRO_LAUNCHER_TEXT_H
#define RETRO_LAUNCHER_TEXT_H

#include <stdio.h>

#include "runtime/base/status.h"
#include "runtime/tokenizer.h"

/* Everything up to the end; malloc'd with a NUL behind *n bytes. `name` is for messages. */
enum status text_read_stream(FILE *f, const char *name, char **text, size_t *n, struct reason *why);
enum status text_read_file(const char *path, char **text, size_t *n, struct reason *why);
/* Decimal ids separated by white space, in n bytes and a NUL behind them. */
enum status text_parse_ids(const char *text, size_t n, struct token_list *ids, struct reason *why);

#endif
