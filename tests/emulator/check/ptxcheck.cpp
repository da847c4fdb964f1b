// ptxcheck FILE.ptx ...: lists the instructions of each kernel that the emulator does not cover. Exit 1 if
// any.
#include "../ptx/program.h"
#include <cstdio>
#include <fstream>
#include <sstream>

using namespace emu;

static bool check_file(const char *path)
{
    std::ifstream f(path);
    if (!f) {
        fprintf(stderr, "ptxcheck: cannot open %s\n", path);
        return false;
    }
    std::stringstream s;
    s << f.rdbuf();
    bool good = true;
    try {
        auto text = parse_module(s.str());
        LoadedModule m(*text);
        u64 fake = 0x100000000ull; // addresses do not matter for decoding
        for (auto &v : text->variables) m.address[v.name] = fake += 0x100000;
        int kernels = 0, bad = 0;
        size_t instructions = 0;
        for (auto &kv : text->functions) {
            if (!kv.second.entry || !kv.second.defined) continue;
            Kernel *k = m.kernel(kv.first);
            kernels++;
            for (auto &fn : k->functions) instructions += fn.second->code.size();
            if (k->uncovered.empty()) continue;
            bad++;
            std::map<std::string, int> count;
            for (auto &u : k->uncovered) count[u]++;
            printf("%s: %s:", path, k->name.c_str());
            for (auto &c : count) printf(" %s(%d)", c.first.c_str(), c.second);
            printf("\n");
        }
        printf("%s: %d kernels, %zu instructions, %d kernels with uncovered instructions\n", path, kernels,
               instructions, bad);
        good = bad == 0;
    } catch (const PtxError &e) {
        printf("%s: %s\n", path, e.what());
        good = false;
    }
    return good;
}

int main(int argc, char **argv)
{
    bool good = argc > 1;
    if (argc < 2) fprintf(stderr, "usage: ptxcheck FILE.ptx ...\n");
    for (int i = 1; i < argc; i++) good &= check_file(argv[i]);
    return good ? 0 : 1;
}
