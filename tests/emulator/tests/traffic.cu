// EMU_STATS: bytes, sectors and distinct sectors of kernels whose traffic can be counted by hand.
#include "check.h"
#include <string>

__global__ void stream(const float *x, float *y) // coalesced: 4 sectors per warp access
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i];
}
__global__ void strided(const float *x, float *y) // one sector per lane
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i * 8];
}
__global__ void repeated(const float4 *x, float *y) // every warp reads the same 512 bytes
{
    float4 v = x[threadIdx.x % 32];
    y[blockIdx.x * blockDim.x + threadIdx.x] = v.x + v.w;
}

static std::string value(const std::string &line, const char *group, const char *key)
{
    size_t g = line.find(std::string("\"") + group + "\""),
           k = line.find(std::string("\"") + key + "\": ", g);
    size_t b = k + strlen(key) + 4;
    return line.substr(b, line.find_first_of(",}", b) - b);
}

int main()
{
    const char *path = getenv("EMU_STATS");
    if (!path) return 2;
    remove(path);
    Device<float> x(std::vector<float>(16384, 1.0f)), y(2048);
    stream<<<8, 256>>>(x.p, y.p);
    strided<<<8, 256>>>(x.p, y.p);
    repeated<<<8, 256>>>((const float4 *)x.p, y.p);
    CUDA(cudaDeviceSynchronize());
    FILE *f = fopen(path, "r");
    char buffer[2048];
    std::vector<std::string> lines;
    while (f && fgets(buffer, sizeof buffer, f)) lines.push_back(buffer);
    CHECK(lines.size() == 3);
    if (lines.size() != 3) return finish("traffic");
    struct {
        const char *bytes, *sectors, *distinct;
    } want[] = {{"8192", "256", "256"}, {"8192", "2048", "2048"}, {"32768", "1024", "16"}};
    for (int k = 0; k < 3; k++) {
        CHECK(value(lines[k], "load", "bytes") == want[k].bytes);
        CHECK(value(lines[k], "load", "sectors") == want[k].sectors);
        CHECK(value(lines[k], "load", "distinct_sectors") == want[k].distinct);
        CHECK(value(lines[k], "store", "bytes") == "8192");
        CHECK(value(lines[k], "store", "sectors") == "256");
    }
    return finish("traffic");
}
