/* signals.h - SIGTERM, SIGINT and SIGUSR1 as a request to finish: the first calls a function on a thread, the second
 * ends the process at once with 128 + n. The same signal again within 0.2 s is no second one.
 *
 * SIGUSR1 is there because Open MPI's mpirun hands it on to every rank, while a SIGTERM to mpirun itself kills the job
 * within seconds. */
#ifndef RETRO_LAUNCHER_SIGNALS_H
#define RETRO_LAUNCHER_SIGNALS_H

/* Once in a process. first may be NULL: the first signal then does nothing (ranks that follow rank 0). */
void signals_open(void (*first)(void *user, int signal), void *user);
/* When it returns, `first` has returned or is never called: what it uses may go. A second signal still ends the process. */
void signals_close(void);

#endif
