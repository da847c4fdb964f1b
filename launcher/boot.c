#include "launcher/boot.h"

#include <stdio.h>
#include <stdlib.h>

#include "runtime/base/die.h"

/* Set by Open MPI's mpirun, by PMIx (srun --mpi=pmix) and by PMI launchers. */
static bool started_by_launcher(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK") || getenv("PMI_SIZE");
}

/* srun without a working MPI plugin starts N programs that each believe to be alone. */
static void refuse_singletons(const struct comm_world *w)
{
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    if (!tasks || w->size > 1 || getenv("OMPI_COMM_WORLD_SIZE")) return;
    if (atoi(tasks) > 1)
        DIE(EXIT_CODE_OPTION, "start with srun --mpi=pmix, or with mpirun inside the allocation",
            "Slurm started %s tasks but each one sees a world of 1 rank", tasks);
}

void boot_open(struct comm_world *w)
{
    comm_world_open(w, started_by_launcher());
    if (w->size > 1) {
        char prefix[96];
        snprintf(prefix, sizeof prefix, "%d@%s", w->rank, w->host);
        log_set_prefix(prefix);
        die_set_hook(comm_world_abort);
    }
    refuse_singletons(w);
}

int boot_close(int exit_code)
{
    comm_world_close();
    return exit_code;
}
