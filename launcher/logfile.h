/* logfile.h - the log of one rank as JSON lines: {"time","rank","host","level","text"}, one write(2) a line. */
#ifndef RETRO_LAUNCHER_LOGFILE_H
#define RETRO_LAUNCHER_LOGFILE_H

#include "comm/comm.h"

/* Makes DIR (not its parents) and DIR/rank-N.jsonl, empty, and sends every log line there from now on; ranks
 * above 0 leave the terminal. */
enum status logfile_open(const char *dir, const struct comm_world *w, struct reason *why);

/* Lets this rank write to the terminal too from now on: it speaks for the job. */
void logfile_speak(void);

#endif
