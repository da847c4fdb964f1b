// The compact form the interpreter runs: a kernel with its functions, decoded once.
//
// Every operand is the byte offset of a slot in the warp's frame. A slot holds 32 lanes of 4 bytes (types up
// to 32 bits, upper bits of 8- and 16-bit values zero) or of 8 bytes. Predicates are one u32 lane mask each
// and come first in the frame. Immediates, symbol addresses and special registers are slots too, filled when
// the frame is made, so that an instruction needs no test for operand kinds.
#pragma once
#include "ast.h"

namespace emu {

struct Warp;
struct Inst;
using Handler = void (*)(Warp &, const Inst &, u32 mask);

enum class Kind : u8 {
    Plain,      // fn(warp, inst, mask), then the next instruction
    Collective, // *.sync: fn runs once all live lanes of the member mask are here
    Branch,
    BranchTable,
    Call,
    Return,
    Exit,
    Barrier
};

constexpr u16 NO_GUARD = 0xffff;

struct Inst {
    Handler fn = nullptr;
    u32 d = 0, a = 0, b = 0, c = 0, e = 0; // slot offsets; their meaning belongs to the handler
    u32 d2 = 0;                            // second destination of "d|p", 0 when absent
    u16 guard = NO_GUARD;
    bool guard_negated = false;
    Kind kind = Kind::Plain;
    Space space = Space::Generic;
    u8 sub = 0;         // operation within the family
    u8 vec = 1;         // elements of a vector access
    bool wide = false;  // the address slot has 8-byte lanes
    bool flag = false;  // handler's own
    bool cached = true; // false for volatile and relaxed accesses, which take no part in race checks
    s64 imm = 0;        // memory operands: byte offset
    u32 target = 0;     // Branch: instruction index
    u32 ext = 0;        // first of this instruction's entries in Func::ext
    u32 source = 0;     // index into Func::body.code
};

enum class Special : u8 {
    TidX,
    TidY,
    TidZ,
    NtidX,
    NtidY,
    NtidZ,
    CtaidX,
    CtaidY,
    CtaidZ,
    NctaidX,
    NctaidY,
    NctaidZ,
    LaneId,
    WarpId,
    NwarpId,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    SmId,
    NsmId,
    GridId,
    DynamicSharedBytes,
    TotalSharedBytes,
    WarpSize,
    ClusterZero,
    ClusterOne,
    Clock,
    Clock64,
    GlobalTimer
};

struct Constant {
    enum From : u8 { Value, DynamicShared } from = Value; // DynamicShared: value is added to where it starts
    u8 width = 4;                                         // lane bytes
    u32 slot = 0;
    u64 value = 0;
};

struct Func {
    const FunctionText *text = nullptr;
    Body body;
    std::vector<Inst> code;
    std::vector<u32> ext;
    std::vector<Constant> constants;
    std::vector<std::pair<Special, u32>> specials; // slot offset; u32 lanes
    std::vector<std::vector<u32>> tables;          // brx targets
    std::vector<const Func *> callees;
    u64 frame_bytes = 0; // predicates, registers, constants, specials
    u64 reg_bytes = 0;   // the leading part that starts out undefined
    u64 param_bytes = 0; // per lane, in front of nothing: functions only
    u64 local_bytes = 0; // per lane
};

class LoadedModule;

// One __global__ function with everything it calls.
struct Kernel {
    std::string name;
    LoadedModule *module = nullptr;
    const Func *entry = nullptr;
    std::map<std::string, std::unique_ptr<Func>> functions;
    std::map<std::string, u64> shared_offset; // module-scope .shared objects in use
    u64 shared_bytes = 0;                     // static
    u64 dynamic_align = 16;
    bool uses_dynamic = false;
    bool order_matters = false;         // global atomics, printf: blocks stay on one thread
    std::vector<std::string> uncovered; // opcodes the interpreter does not cover
};

// A module with its global variables placed in device memory of one device.
class LoadedModule {
  public:
    explicit LoadedModule(const ModuleText &module_text) : text(module_text) {}
    const ModuleText &text;
    std::map<std::string, u64> address; // .global and .const variables
    std::map<std::string, std::unique_ptr<Kernel>> kernels;

    // Decodes the kernel on first use; null when the module has no such entry.
    Kernel *kernel(const std::string &name);
};

// "file.cu:12" when the PTX has line information, and the instruction's text.
std::string describe(const LoadedModule &m, const Func &f, const Inst &i);

} // namespace emu
