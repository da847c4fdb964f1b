/* commands.h - one function per command; each returns the process's exit code. */
#ifndef RETRO_LAUNCHER_COMMANDS_H
#define RETRO_LAUNCHER_COMMANDS_H

#include "comm/comm.h"
#include "runtime/options.h"

int cmd_generate(const struct options *o, const struct comm_world *w);
int cmd_eval(const struct options *o, const struct comm_world *w);
int cmd_check(const struct options *o, const struct comm_world *w);
int cmd_info(const struct options *o, const struct comm_world *w);
int cmd_tokenize(const struct options *o, const struct comm_world *w);

#endif
