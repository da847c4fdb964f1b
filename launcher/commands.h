/* commands.h - one function per command; each returns the process's exit code. */
#ifndef RETRO_LAUNCHER_COMMANDS_H
#define RETRO_LAUNCHER_COMMANDS_H

#include "comm/comm.h"
#include "runtime/options.h"

int cmd_generate(const struct options *o, const struct comm_world *w);
int cmd_batch(const struct options *o, const struct comm_world *w);
int cmd_serve(const struct options *o, const struct comm_world *w);
int cmd_eval(const struct options *o, const struct comm_world *w);
int cmd_doctor(const struct options *o, const struct comm_world *w);
int cmd_check(const struct options *o, const struct comm_world *w);
int cmd_bench_decode(const struct options *o, const struct comm_world *w);
int cmd_bench_prefill(const struct options *o, const struct comm_world *w);
int cmd_bench_kernels(const struct options *o, const struct comm_world *w);
int cmd_bench_allreduce(const struct options *o, const struct comm_world *w);
int cmd_bench_serve(const struct options *o, const struct comm_world *w);
int cmd_plan(const struct options *o, const struct comm_world *w);
int cmd_info(const struct options *o, const struct comm_world *w);
int cmd_tokenize(const struct options *o, const struct comm_world *w);

#endif
