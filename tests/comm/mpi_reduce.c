/* mpi_reduce.c - the collectives of comm.h on any number of ranks, by every transport that connects them
 * here.
 *
 * Right is: each element is the sum of the ranks' elements, added in rank order in f32, to the bit, on every
 * rank. Values are hashes of (rank, round, index), so every rank knows what every other one brought. */
#include "tests/comm/check.h"

#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/group.h"
#include "runtime/base/clock.h"

enum { CANARIES = 16, ELEMENTS_MAX = 3000000 };

static struct comm_world world;
static struct comm *groups[3];
static int n_groups;

static uint32_t hash(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* Of very different sizes and both signs, so that another order of additions gives other bits. */
static float value(int rank, uint32_t round, size_t i)
{
    uint32_t h = hash(hash((uint32_t)i * 31 + round) + (uint32_t)rank * 0x9e3779b9u);
    return ldexpf((float)(int32_t)(h >> 8 << 8) * 0x1p-31f, (int)(h & 31) - 16);
}

static void check_sum(struct comm *c, float *buffer, size_t n, uint32_t round)
{
    for (size_t i = 0; i < n; i++) buffer[i] = value(world.rank, round, i);
    for (int i = 0; i < CANARIES; i++) buffer[n + (size_t)i] = NAN;
    comm_all_reduce(c, buffer, n, DTYPE_F32, NULL);
    for (size_t i = 0; i < n; i++) {
        float sum = value(0, round, i);
        for (int r = 1; r < world.size; r++) sum += value(r, round, i);
        CHECK(memcmp(&sum, &buffer[i], sizeof sum) == 0, "%s: element %zu of %zu: %a, expected %a",
              comm_describe(c), i, n, (double)buffer[i], (double)sum);
    }
    for (int i = 0; i < CANARIES; i++)
        CHECK(isnan(buffer[n + (size_t)i]), "%s: wrote behind %zu elements", comm_describe(c), n);
}

/* The same in bf16: widened, added in rank order in f32, rounded once. */
static void check_sum_bf16(struct comm *c, uint16_t *buffer, size_t n, uint32_t round)
{
    for (size_t i = 0; i < n; i++) buffer[i] = dtype_bf16_from_f32(value(world.rank, round, i));
    for (int i = 0; i < CANARIES; i++) buffer[n + (size_t)i] = 0x7fc1;
    comm_all_reduce(c, buffer, n, DTYPE_BF16, NULL);
    for (size_t i = 0; i < n; i++) {
        float sum = dtype_f32_from_bf16(dtype_bf16_from_f32(value(0, round, i)));
        for (int r = 1; r < world.size; r++)
            sum += dtype_f32_from_bf16(dtype_bf16_from_f32(value(r, round, i)));
        CHECK(buffer[i] == dtype_bf16_from_f32(sum), "%s: element %zu of %zu: %04x, expected %04x",
              comm_describe(c), i, n, buffer[i], dtype_bf16_from_f32(sum));
    }
    for (int i = 0; i < CANARIES; i++)
        CHECK(buffer[n + (size_t)i] == 0x7fc1, "%s: wrote behind %zu elements", comm_describe(c), n);
}

/* Around the sizes where shm.c changes what it does (8192, 262144 elements) and where slices are uneven. */
static void sums_of_all_sizes(void **state)
{
    (void)state;
    static const size_t sizes[] = {0,      1,      2,       3,           7,      31,     576,
                                   2304,   4099,   8191,    8192,        8193,   16384,  65537,
                                   262143, 262144, 262145,  524287,      524288, 524289, 99991,
                                   270336, 270337, 1000003, ELEMENTS_MAX};
    float *buffer = malloc((ELEMENTS_MAX + CANARIES) * sizeof *buffer);
    CHECK(buffer, "no memory");
    for (int g = 0; g < n_groups; g++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            check_sum(groups[g], buffer, sizes[s], (uint32_t)s);
    for (int g = 0; g < n_groups; g++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            check_sum_bf16(groups[g], (uint16_t *)buffer, sizes[s], (uint32_t)s + 50);
    free(buffer);
}

/* Many calls in a row: slots and parities are reused, and ranks arrive at random times. */
static void random_sizes(void **state)
{
    (void)state;
    float *buffer = malloc((ELEMENTS_MAX + CANARIES) * sizeof *buffer);
    CHECK(buffer, "no memory");
    for (int g = 0; g < n_groups; g++)
        for (uint32_t round = 0; round < 400; round++) {
            uint32_t h = hash(round + 1000);
            size_t n = h % 4 == 0 ? 8000 + h / 4 % 400 : h % 4 == 1 ? h / 4 % 40000 : h / 4 % 1200;
            if (round % 100 == 99) n = 262000 + h % 300;
            if (hash(round * 64 + (uint32_t)world.rank) % 16 == 0)
                for (int64_t until = clock_us() + 300; clock_us() < until;) {
                }
            check_sum(groups[g], buffer, n, round);
        }
    free(buffer);
}

static void sums_do_not_depend_on_the_call(void **state)
{
    (void)state;
    enum { N = 20000, PART = 1234 };
    static float whole[N], part[PART];
    for (int g = 0; g < n_groups; g++) {
        for (size_t i = 0; i < N; i++) whole[i] = value(world.rank, 5, i);
        memcpy(part, whole + 777, sizeof part);
        comm_all_reduce(groups[g], whole, N, DTYPE_F32, NULL);
        comm_all_reduce(groups[g], part, PART, DTYPE_F32, NULL);
        CHECK(memcmp(part, whole + 777, sizeof part) == 0, "%s: the row's neighbours matter",
              comm_describe(groups[g]));
    }
}

static void uneven_gather(void **state)
{
    (void)state;
    for (int g = 0; g < n_groups; g++)
        for (uint32_t round = 0; round < 50; round++) {
            size_t counts[64], total = 0, at = 0;
            for (int r = 0; r < world.size; r++) {
                uint32_t h = hash(round * 100 + (uint32_t)r);
                counts[r] = h % 5 == 0 ? 0 : h % (round % 10 == 0 ? 200001 : 301);
                total += counts[r];
            }
            unsigned char *mine = malloc(counts[world.rank] + 1), *all = malloc(total + 1);
            CHECK(mine && all, "no memory");
            for (size_t i = 0; i < counts[world.rank]; i++)
                mine[i] = (unsigned char)hash((uint32_t)(i + round));
            for (size_t i = 0; i < counts[world.rank]; i++) mine[i] ^= (unsigned char)world.rank;
            all[total] = 0xa5;
            comm_gather(groups[g], mine, counts[world.rank], world.rank == 0 ? all : NULL,
                        world.rank == 0 ? counts : NULL);
            for (int r = 0; world.rank == 0 && r < world.size; r++)
                for (size_t i = 0; i < counts[r]; i++, at++)
                    CHECK(all[at] == (unsigned char)(hash((uint32_t)(i + round)) ^ (unsigned)r),
                          "round %u: byte %zu of rank %d", round, i, r);
            CHECK(all[total] == 0xa5, "wrote behind the gathered bytes");
            free(mine);
            free(all);
        }
}

static void host_collectives(void **state)
{
    (void)state;
    struct comm *c = groups[0];
    int64_t n = world.size, sum[2] = {world.rank, 1}, least[2] = {100 - world.rank, world.rank},
            most[2] = {world.rank, -world.rank};
    comm_sum_i64(c, sum, 2);
    comm_min_i64(c, least, 2);
    comm_max_i64(c, most, 2);
    CHECK(sum[0] == n * (n - 1) / 2 && sum[1] == n, "sum %lld %lld", (long long)sum[0], (long long)sum[1]);
    CHECK(least[0] == 101 - n && least[1] == 0 && most[0] == n - 1 && most[1] == 0, "min or max");
    char text[64] = "what rank 0 says";
    if (world.rank != 0) memset(text, 0, sizeof text);
    comm_bcast(c, text, sizeof text);
    CHECK(strcmp(text, "what rank 0 says") == 0, "broadcast");
    comm_barrier(c);
}

static void places_and_names(void **state)
{
    (void)state;
    CHECK(world.node_size == world.size && world.node_rank == world.rank && world.host[0],
          "all ranks are here");
    for (int g = 0; g < n_groups; g++) {
        CHECK(comm_rank(groups[g]) == world.rank && comm_size(groups[g]) == world.size, "rank and size");
        if (world.rank == 0) printf("transport: %s\n", comm_describe(groups[g]));
    }
    if (world.size > 1) CHECK(strstr(comm_describe(groups[0]), "shared memory"), "one host: shared memory");
    if (world.size > 1) CHECK(strstr(comm_describe(groups[1]), "1 host"), "the other one is MPI");
}

/* The world dealt into groups: each sums among its own ranks only, and has a leader of its own. */
static void replicas(void **state)
{
    (void)state;
    int half = world.size % 2 == 0 ? world.size / 2 : 1;
    struct comm *c = comm_open(&world, half);
    comm_reserve(c, 3);
    CHECK(comm_size(c) == half && comm_rank(c) == world.rank % half, "place in the group");
    int first = world.rank / half * half;
    float sums[3] = {(float)world.rank, 1, -(float)world.rank};
    comm_all_reduce(c, sums, 3, DTYPE_F32, NULL);
    float expected = 0;
    for (int r = first; r < first + half; r++) expected += (float)r;
    CHECK(sums[0] == expected && sums[1] == (float)half && sums[2] == -expected, "sum of the group");
    int leader = world.rank;
    comm_bcast(c, &leader, sizeof leader);
    CHECK(leader == first, "rank %d leads, expected %d", leader, first);
    int64_t most = world.rank;
    comm_max_i64(c, &most, 1);
    CHECK(most == first + half - 1, "largest rank of the group");
    CHECK(comm_world_rank(c, comm_rank(c)) == world.rank && comm_world_rank(c, 0) == first, "names");
    comm_barrier(c);

    struct comm *whole = comm_open_world(&world), *leaders = comm_open_leaders(&world, half);
    CHECK(comm_size(whole) == world.size && comm_rank(whole) == world.rank, "place in the world");
    most = world.rank;
    comm_max_i64(whole, &most, 1);
    CHECK(most == world.size - 1, "largest rank of the world");
    CHECK(!leaders == (comm_rank(c) != 0), "only leaders meet");
    if (leaders) {
        int64_t sum = first, expected_sum = 0;
        for (int r = 0; r < world.size; r += half) expected_sum += r;
        comm_sum_i64(leaders, &sum, 1);
        CHECK(sum == expected_sum && comm_size(leaders) == world.size / half, "sum of the leaders");
        CHECK(comm_world_rank(leaders, comm_rank(leaders)) == world.rank, "a leader's name");
    }
    comm_close(leaders);
    comm_close(whole);
    comm_close(c);
}

/* Time per call, for a reader; nothing is checked because machines differ. */
static void speed(void **state)
{
    (void)state;
    static const size_t sizes[] = {576, 2048, 8192, 65536, 1048576};
    float *buffer = calloc(1048576, sizeof *buffer);
    CHECK(buffer, "no memory");
    for (int g = 0; g < n_groups; g++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            int n_calls = sizes[s] > 100000 ? 20 : 300;
            comm_barrier(groups[g]);
            int64_t begun = clock_us();
            for (int i = 0; i < n_calls; i++) comm_all_reduce(groups[g], buffer, sizes[s], DTYPE_F32, NULL);
            double us = (double)(clock_us() - begun) / n_calls;
            if (world.rank == 0)
                printf("%-32s %8zu floats  %9.1f us  %6.2f GB/s\n", comm_describe(groups[g]), sizes[s], us,
                       (double)sizes[s] * 4e-3 / us);
        }
    free(buffer);
}

int main(void)
{
    comm_world_open(&world, true);
    if (world.size > 1) die_set_hook(comm_world_abort);
    groups[n_groups++] = comm_open(&world, world.size);
    if (world.size > 1) {
        groups[n_groups] = comm_alloc(world.rank, world.size);
        mpi_open(groups[n_groups++], world.rank == 0);
    }
    for (int g = 0; g < n_groups; g++) comm_reserve(groups[g], ELEMENTS_MAX);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_and_names), cmocka_unit_test(sums_of_all_sizes),
        cmocka_unit_test(random_sizes),     cmocka_unit_test(sums_do_not_depend_on_the_call),
        cmocka_unit_test(uneven_gather),    cmocka_unit_test(host_collectives),
        cmocka_unit_test(replicas),         cmocka_unit_test(speed),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int g = 0; g < n_groups; g++) comm_close(groups[g]);
    comm_world_close();
    return failed;
}
