/* boot.h - the process around a command: environment, MPI, log prefix, how it ends.
 *
 * boot.c holds the only getenv calls of the program. */
#ifndef RETRO_LAUNCHER_BOOT_H
#define RETRO_LAUNCHER_BOOT_H

#include "comm/comm.h"

/* Starts MPI when mpirun or srun started this process, sets the log prefix and the die hook. */
void boot_open(struct comm_world *w);
/* Normal end of all ranks. Returns `exit_code`. */
int boot_close(int exit_code);

#endif
