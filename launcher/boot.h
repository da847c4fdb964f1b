/* boot.h - the process around a command: environment, MPI, log, heartbeat, how it ends.
 *
 * States: boot_open (MPI runs, the die hook ends the job by it) -> boot_watch (a command with several ranks: the
 * heartbeat runs, every end of a rank is told to all) -> boot_close. boot.c holds the only getenv calls of the
 * program. */
#ifndef RETRO_LAUNCHER_BOOT_H
#define RETRO_LAUNCHER_BOOT_H

#include "comm/comm.h"
#include "runtime/options.h"

/* Starts MPI when mpirun or srun started this process, sets the log prefix and the die hook. DIEs when MPI does
 * not come up within start_s. */
void boot_open(struct comm_world *w, double start_s);
/* Collective: the log files and the heartbeat that the options ask for, in a world dealt into groups of `group`
 * ranks. The same status on every rank; why of rank 0. */
enum status boot_watch(const struct comm_world *w, const struct options *o, int group, struct reason *why);
/* How long the mpirun that started us needs to notice that a host is gone; 0 when there is none. */
double boot_mpirun_notices_s(void);
/* Whether ranks that wait inside MPI were told to give their core away. */
bool boot_yields(void);
/* Normal end of all ranks. Returns `exit_code`. */
int boot_close(int exit_code);

#endif
