"""Prints the tables of runtime/unicode_exceptions.inc: where the Unicode tables inside Hugging Face's
`tokenizers` differ from those of the installed utf8proc, over all code points.

The library is asked, not read: every property is found by feeding it strings. It carries the tables
of several crates, each of its own Unicode version, so no single version of utf8proc can agree.

Usage (any virtual environment with `pip install tokenizers==0.23.3`, and libutf8proc.so.2):
    python find_unicode_exceptions.py > ../../../runtime/unicode_exceptions.inc
"""

import ctypes

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
WORD_CATEGORIES = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"}
JOIN_CONTROLS = {0x200C, 0x200D}
# Tab, line feed and carriage return are controls that the normaliser takes for spaces.
NOT_ASKED_AS_CONTROL = {0x9, 0xA, 0xD, 0xFFFD}


class Property(ctypes.Structure):
    """The first fields of utf8proc_property_t."""

    _fields_ = [("category", ctypes.c_int16), ("combining_class", ctypes.c_int16)]


class Utf8proc:
    def __init__(self):
        self.lib = ctypes.CDLL("libutf8proc.so.2")
        self.lib.utf8proc_category_string.restype = ctypes.c_char_p
        self.lib.utf8proc_get_property.restype = ctypes.POINTER(Property)

    def category(self, c):
        return self.lib.utf8proc_category_string(c).decode()

    def combining_class(self, c):
        return self.lib.utf8proc_get_property(c).contents.combining_class

    def lower(self, c):
        return self.lib.utf8proc_tolower(c)

    def decompose(self, c):
        buffer, last = (ctypes.c_int32 * 32)(), ctypes.c_int(0)
        canonical = 1 << 4  # UTF8PROC_DECOMPOSE
        count = self.lib.utf8proc_decompose_char(c, buffer, 32, canonical, ctypes.byref(last))
        return "".join(chr(x) for x in buffer[:count])


def bert(**on):
    flags = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return normalizers.BertNormalizer(**{**flags, **on})


class Reference:
    def __init__(self):
        self.clean, self.strip = bert(clean_text=True), bert(strip_accents=True)
        self.nfd, self.lowercase = normalizers.NFD(), bert(lowercase=True)
        self.words = pre_tokenizers.BertPreTokenizer()
        vocab = {"[UNK]": 0, "x": 1}
        self.single_word = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        self.single_word.add_tokens([AddedToken("x", single_word=True, normalized=False)])

    def middle(self, normalizer, c):
        return normalizer.normalize_str("a" + chr(c) + "b")[1:-1]

    def is_other(self, c):
        return self.middle(self.clean, c) == "" and c not in NOT_ASKED_AS_CONTROL

    def is_mark(self, c):
        return self.middle(self.strip, c) == "" and self.middle(self.nfd, c) == chr(c)

    def is_punctuation(self, c):
        return len(self.words.pre_tokenize_str("a" + chr(c) + "b")) == 3

    def is_word(self, c):
        return self.single_word.encode("x" + chr(c)).ids[0] != 1

    def reorders(self, c):
        """Whether the combining class of c is not 0."""
        before_overlay = "a" + chr(c) + "\u0334"  # class 1
        after_iota = "a\u0345" + chr(c)  # class 240
        return any(self.nfd.normalize_str(s) != s for s in (before_overlay, after_iota))


def runs(code_points, value=lambda c: None):
    result = []
    for c in sorted(code_points):
        if result and result[-1][1] == c - 1 and result[-1][2] == value(c):
            result[-1][1] = c
        else:
            result.append([c, c, value(c)])
    return result


def emit(name, comment, code_points):
    print(f"\n// {comment}\nconstexpr CodePointRange {name}[] = {{")
    line = "   "
    for first, last, _ in runs(code_points):
        item = f" {{0x{first:X}, 0x{last:X}}},"
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line + "\n};")


def main():
    ours, ref = Utf8proc(), Reference()
    category = {c: ours.category(c) for c in CODE_POINTS}
    other = {c for c in CODE_POINTS if category[c] in ("Cc", "Cf", "Co")} - NOT_ASKED_AS_CONTROL
    mark = {c for c in CODE_POINTS if category[c] == "Mn" and ours.decompose(c) == chr(c)}
    punctuation = {c for c in CODE_POINTS if category[c][0] == "P"}
    punctuation |= {c for c in range(128) if category[c][0] == "S"}
    word = {c for c in CODE_POINTS if category[c] in WORD_CATEGORIES} | JOIN_CONTROLS
    ccc = {c for c in CODE_POINTS if ours.combining_class(c) and ours.decompose(c) == chr(c)}

    ref_other = {c for c in CODE_POINTS if ref.is_other(c)}
    ref_mark = {c for c in CODE_POINTS if ref.is_mark(c)}
    ref_punctuation = {c for c in CODE_POINTS if ref.is_punctuation(c)}
    ref_word = {c for c in CODE_POINTS if ref.is_word(c)}
    ref_ccc = {c for c in ccc if ref.reorders(c)}
    assert not ref_other - other and not word - ref_word

    print("// Made by tests/golden/tokenizer/find_unicode_exceptions.py; included by unicode.cc alone.")
    emit("kNotOther", "Cc, Cf or Co in utf8proc, but not a control.", other - ref_other)
    emit("kNotPunctuation", "P in utf8proc, but no punctuation.", punctuation - ref_punctuation)
    emit("kExtraPunctuation", "Not P in utf8proc, but punctuation.", ref_punctuation - punctuation)
    emit("kNotMark", "Mn in utf8proc, but no nonspacing mark.", mark - ref_mark)
    emit("kExtraMarks", "Not Mn in utf8proc, but a nonspacing mark.", ref_mark - mark)
    emit("kNotReordered", "Combining class not 0 in utf8proc, but 0.", ccc - ref_ccc)
    emit("kExtraWord", "Word characters of \\w that no category of utf8proc makes so.", ref_word - word)
    emit("kNotDecomposed", "Decomposed by utf8proc, but left whole.",
         {c for c in CODE_POINTS if ref.middle(ref.nfd, c) != ours.decompose(c)})

    lower = {c: ref.middle(ref.lowercase, c) for c in CODE_POINTS}
    differ = {c for c, s in lower.items() if s != chr(ours.lower(c))}
    assert {c for c in differ if len(lower[c]) != 1} == {0x130}, "only U+0130 becomes two"
    print("\n// Simple lower-case mappings that utf8proc lacks; U+0130 becomes two code points besides.")
    print("constexpr LowerCaseRange kLowerCase[] = {")
    for first, last, delta in runs(differ - {0x130}, lambda c: ord(lower[c]) - c):
        print(f"    {{0x{first:X}, 0x{last:X}, {delta}}},")
    print("};")


if __name__ == "__main__":
    main()
