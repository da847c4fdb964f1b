#include "format.h"

namespace emu {

static void read_bytes(Warp &w, int lane, u64 address, void *to, int n)
{
    for (int k = 0; k < n; k++)
        ((u8 *)to)[k] = *resolve_one(w, Space::Generic, address + k, 1, Access::Read, lane, false);
}

std::string device_string(Warp &w, int lane, u64 address)
{
    std::string s;
    for (char c; s.size() < 65536; address++) {
        read_bytes(w, lane, address, &c, 1);
        if (!c) break;
        s += c;
    }
    return s;
}

std::string device_format(Warp &w, int lane, u64 format, u64 at)
{
    std::string f = device_string(w, lane, format), out;
    auto take = [&](int n) {
        at = align_up(at, n);
        u64 v = 0;
        read_bytes(w, lane, at, &v, n);
        at += n;
        return v;
    };
    for (size_t i = 0; i < f.size(); i++) {
        if (f[i] != '%') {
            out += f[i];
            continue;
        }
        std::string spec = "%";
        bool wide = false;
        for (i++; i < f.size() && strchr("-+ #0123456789.*lhzjt", f[i]); i++) {
            if (f[i] == '*') {
                spec += std::to_string((s32)take(4));
            } else if (strchr("lzjt", f[i])) {
                wide = true;
            } else if (f[i] != 'h') {
                spec += f[i];
            }
        }
        if (i >= f.size()) break;
        char c = f[i], b[512];
        if (c == '%') {
            out += '%';
            continue;
        }
        if (strchr("eEfFgGaA", c)) {
            snprintf(b, sizeof b, (spec + c).c_str(), bits_as<double>(take(8)));
        } else if (c == 's') {
            snprintf(b, sizeof b, (spec + c).c_str(), device_string(w, lane, take(8)).c_str());
        } else if (c == 'p') {
            snprintf(b, sizeof b, "0x%llx", (unsigned long long)take(8));
        } else if (c == 'c') {
            snprintf(b, sizeof b, (spec + c).c_str(), (int)take(4));
        } else {
            u64 v = wide ? take(8) : take(4);
            if (!wide && (c == 'd' || c == 'i')) v = (u64)(s64)(s32)v;
            snprintf(b, sizeof b, (spec + "ll" + c).c_str(), (long long)v);
        }
        out += b;
    }
    return out;
}

} // namespace emu
