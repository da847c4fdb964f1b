// Decoder: turns a Statement into an Inst. One decode_* function per instruction family, beside its handlers.
#pragma once
#include "program.h"

namespace emu {

class Decoder {
  public:
    Decoder(Kernel &k, Func &f) : kernel(k), func(f) {}
    Kernel &kernel;
    Func &func;
    const Statement *st = nullptr;

    // The statement's type words in order: {"cvt","rn","bf16","f32"} -> {BF16, F32}.
    std::vector<Ty> types() const;
    const Operand &arg(size_t i) const;
    size_t args() const { return st->args.size(); }
    bool has(const char *w) const { return st->has(w); }
    // 1-based rank of the first of the words the statement has, 0 when it has none.
    int one_of(std::initializer_list<const char *> words) const;

    // Slot of a source with lanes of 'width' bytes (4 or 8). Immediates and symbols become constants. A
    // register of another width is an error, except through source_any.
    u32 source(const Operand &o, int width);
    // Slot and lane width of a source of whatever width it was declared with.
    u32 source_any(const Operand &o, int preferred, int &width);
    u32 dest(const Operand &o, int width);
    u32 dest_any(const Operand &o, int preferred, int &width);
    // Predicate operands: the frame offset of the mask; negate tells "!p".
    u32 predicate(const Operand &o, bool &negate);
    u32 predicate_dest(const Operand &o);
    u32 constant(u64 value, int width);
    // "[reg+imm]" into i.a, i.wide, i.imm.
    void memory(const Operand &o, Inst &i);
    Space space_word() const;
    [[noreturn]] void fail(const std::string &what) const;

    void layout(); // slots for the declared registers
    void run();    // all statements
    u32 reg_slot(int reg) const { return slots[reg]; }
    u32 scratch(int width); // slot that nobody reads
    // The mul.f32 without a rounding whose result the operand still is, with the same factors; null when none is.
    const Statement *product(const Operand &o) const;

  private:
    std::map<int, const Statement *> products; // by register, within a basic block
    void follow_products();
    std::vector<u32> slots;
    std::map<std::pair<int, u64>, u32> constant_slots;
    std::map<u64, u32> dynamic_slots;
    std::map<Special, u32> special_slots;
    u32 sink4 = 0, sink8 = 0, sink_pred = 0;

    u32 new_slot(int width);
    u32 symbol(const Operand &o, int width);
    u32 special(const std::string &name);
    void control(Inst &i);
};

// Each returns false when the opcode is not one of its family's; throws PtxError for a form it does not
// cover.
bool decode_int(Decoder &, Inst &);
bool decode_bits(Decoder &, Inst &);
bool decode_float(Decoder &, Inst &);
bool decode_packed(Decoder &, Inst &);
bool decode_math(Decoder &, Inst &);
bool decode_compare(Decoder &, Inst &);
bool decode_convert(Decoder &, Inst &);
bool decode_move(Decoder &, Inst &);
bool decode_memory(Decoder &, Inst &);
bool decode_atomic(Decoder &, Inst &);
bool decode_collective(Decoder &, Inst &);
bool decode_matrix(Decoder &, Inst &);
bool decode_async(Decoder &, Inst &);

inline int slot_width(Ty t) { return type_bytes(t) == 8 ? 8 : 4; }

} // namespace emu
