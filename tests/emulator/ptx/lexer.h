// A cursor over PTX text: skips blanks and comments, reads words, numbers and punctuation.
#pragma once
#include "ast.h"

namespace emu {

class Lexer {
  public:
    Lexer(const std::string &source, size_t first, size_t last) : text(source), pos(first), end(last) {}

    const std::string &text;
    size_t pos, end;

    bool done()
    {
        skip_blanks();
        return pos >= end;
    }
    // Next character after blanks; 0 at the end.
    char peek() { return done() ? 0 : text[pos]; }
    bool accept(char c)
    {
        if (peek() != c) return false;
        pos++;
        return true;
    }
    bool accept_word(const char *word);
    void expect(char c);
    // Letters, digits and _ $ % . (so that ".align" and "%tid.x" are one word); empty when none follows.
    std::string word();
    // Like word(), and also accepts the "::" of ".shared::cta".
    std::string opcode();
    // Integer (decimal, hex, octal, signed) or 0f/0d floating-point bits.
    u64 number();
    bool number_follows();
    void skip_line();
    // From '{' to after its matching '}'; returns the range inside.
    std::pair<size_t, size_t> braces();
    [[noreturn]] void fail(const std::string &what);

  private:
    void skip_blanks();
};

} // namespace emu
