// What the parser makes of PTX text: modules, functions and statements with resolved registers.
//
// Function bodies are parsed only when a kernel is first launched (a CUB-heavy module holds many that never
// are).
#pragma once
#include "types.h"
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

namespace emu {

// PTX that does not parse, or that the interpreter does not cover.
struct PtxError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Operand {
    enum Kind : u8 { None, Reg, Imm, Special, Symbol, Vector, Memory, Sink };
    Kind kind = None;
    bool negate = false;        // !p
    int reg = -1;               // Reg: index into Body::regs
    u64 imm = 0;                // Imm: bits; Symbol and Memory: byte offset
    std::string name;           // Special, Symbol
    std::vector<Operand> parts; // Vector: elements; Memory: the base; Reg with "d|p": the second destination
};

struct Statement {
    std::vector<std::string> words; // opcode split at dots: {"ld", "global", "v4", "u32"}
    std::vector<Operand> args;
    int guard = -1; // predicate register
    bool guard_negated = false;
    u32 file = 0, line = 0; // from .loc, 0 when unknown
    std::string text;

    bool has(const char *word) const
    {
        for (size_t i = 1; i < words.size(); i++)
            if (words[i] == word) return true;
        return false;
    }
};

struct Register {
    Ty type;
};

// A declared object in a memory space; offset is relative to its space's area in this function or module.
struct Object {
    std::string name;
    Ty type = Ty::B8;
    u64 bytes = 0, align = 1, offset = 0;
};

struct Body {
    std::vector<Register> regs;
    std::vector<Statement> code;
    std::map<std::string, u32> labels;                             // label -> index into code
    std::map<std::string, std::vector<std::string>> branch_tables; // label -> labels
    std::map<std::string, Object> locals, shareds, params;         // declared inside the body
    u64 local_bytes = 0, shared_bytes = 0, param_bytes = 0;
};

struct FunctionText {
    std::string name;
    bool entry = false, defined = false;
    std::vector<Object> params, results; // offsets assigned: entries by C layout, functions in 16-byte cells
    u64 param_bytes = 0;                 // params and results together
    u32 max_threads = 0;                 // product of .maxntid or .reqntid, 0 when absent
    size_t body_begin = 0, body_end = 0; // range in ModuleText::text, inside the braces
};

struct Initializer {
    u64 offset;
    int bytes;
    u64 value;
    std::string symbol; // non-empty: the symbol's address plus value
};

struct Variable : Object {
    Space space = Space::Global;
    bool external = false;
    std::vector<Initializer> init;
};

struct ModuleText {
    std::string text;
    std::map<u32, std::string> files; // .file number -> name
    std::map<std::string, FunctionText> functions;
    std::vector<Variable> variables;
    std::map<std::string, Variable> shareds; // module-scope .shared; external ones have no size
};

std::unique_ptr<ModuleText> parse_module(std::string text);
Body parse_body(const ModuleText &module, const FunctionText &function);

} // namespace emu
