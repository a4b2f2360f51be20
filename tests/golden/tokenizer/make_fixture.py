"""Makes the fixtures of tests/runtime/wordpiece_test.cc with Hugging Face's `tokenizers`.

    python make_fixture.py [tokenizer.json of all-MiniLM-L6-v2, to check the "uncased" variant against]

in any virtual environment with `pip install tokenizers==0.23.3`. Writes, beside this script:
  variants.json     tokenizer.json files without their vocabulary, which is vocab.txt
  cases.jsonl       texts with the ids and byte offsets that the library gives
  code_points.json  what becomes of every code point
  invalid.json      byte strings that are not UTF-8 (in hex), and where they stop being it
"""

import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

import sample_texts

HERE = pathlib.Path(__file__).parent
VOCAB = {t: i for i, t in enumerate((HERE / "vocab.txt").read_text("utf-8").split("\n")[:-1])}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def raw(content, **flags):
    return AddedToken(content, normalized=False, **flags)


def normalized(content, **flags):
    return AddedToken(content, normalized=True, **flags)


ADDED = [
    raw("<x>", lstrip=True, rstrip=True),
    raw("yesterday", single_word=True),
    raw("foobar"),
    raw("foob"),
    raw("\u4eac", lstrip=True),
    raw("\u302e\u0301z"),
    raw("q\u0301"),
    raw("dayx"),
    normalized("Foo Bar"),
    normalized("\u00e9t\u00e9", single_word=True),
    normalized("<ent>", lstrip=True, rstrip=True),
    normalized("\u0130x"),
    normalized("\u6771\u4eac"),
    normalized("the", single_word=True, lstrip=True),
    normalized("ab c", rstrip=True),
    normalized("t\u00e9!"),
]


def tokenizer(clean=True, cjk=True, strip=None, lower=True, added=(), max_chars=100, vocab=VOCAB):
    t = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=max_chars))
    t.normalizer = normalizers.BertNormalizer(clean, cjk, strip, lower)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if vocab is VOCAB:
        t.add_special_tokens(SPECIAL)
        t.add_tokens(list(added))
        t.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", VOCAB["[CLS]"]), ("[SEP]", VOCAB["[SEP]"])],
        )
    return t


VARIANTS = {
    "uncased": tokenizer(),
    "cased": tokenizer(lower=False),
    "cased_stripped": tokenizer(lower=False, strip=True),
    "lower_unstripped": tokenizer(strip=False),
    "not_cleaned": tokenizer(clean=False),
    "no_cjk": tokenizer(cjk=False),
    "untouched": tokenizer(clean=False, cjk=False, strip=False, lower=False),
    "short_words": tokenizer(max_chars=7),
    "long_words": tokenizer(max_chars=100_000),
    "added_raw": tokenizer(added=[t for t in ADDED if not t.normalized]),
    "added": tokenizer(added=ADDED),
    "added_cased": tokenizer(lower=False, clean=False, added=ADDED),
}


def byte_positions(text):
    positions = [0]
    for c in text:
        positions.append(positions[-1] + len(c.encode()))
    return positions


def encode(variant, first, second=None, limit=None, direction="right", special=True):
    t = VARIANTS[variant]
    t.no_truncation()
    if limit is not None:
        t.enable_truncation(limit, direction=direction)
    e = t.encode(first, second, add_special_tokens=special)
    texts = [byte_positions(first), byte_positions(second or "")]
    offsets = []
    for (begin, end), sequence in zip(e.offsets, e.sequence_ids):
        at = texts[sequence] if sequence is not None else [0]
        offsets += [at[begin], at[end]]
    case = {"v": variant, "a": first}
    if second is not None:
        case |= {"b": second, "types": e.type_ids}
    if limit is not None:
        case |= {"limit": limit, "keep": direction}
    if not special:
        case["special"] = False
    return case | {"ids": e.ids, "offsets": offsets}


def make_cases():
    rng = random.Random(20241124)
    texts = sample_texts.all_texts(rng, list(VOCAB))
    cases = [encode("uncased", t) for t in texts]
    cases += [encode("cased", t) for t in rng.sample(texts, 700)]
    for variant in VARIANTS:
        if variant in ("uncased", "cased"):
            continue
        sample = [sample_texts.mixed(rng, list(VOCAB)) for _ in range(100)]
        if variant.startswith("added"):
            sample += [sample_texts.with_added_tokens(rng, list(VOCAB)) for _ in range(150)]
        cases += [encode(variant, t) for t in sample]
    # Whitespace that reaches beyond any buffer, and tokens that take it.
    for text in ("ab c{}<x>.", "ab c{}z", "a{}the<x>", "a{}<ent>{}b", "<x>{}the", "ab c{}the{}<ent>"):
        cases += [encode("added", text.replace("{}", gap)) for gap in (" " * 2500, "\u3000" * 900)]
    for _ in range(250):
        limit, direction = rng.choice([2, 3, 5, 8, 13, 21]), rng.choice(["right", "left"])
        special = rng.random() < 0.7
        variant = rng.choice(["uncased", "cased", "added"])
        text = sample_texts.mixed(rng, list(VOCAB))
        cases.append(encode(variant, text, None, limit, direction, special))
    for _ in range(500):
        first, second = (sample_texts.mixed(rng, list(VOCAB)) for _ in range(2))
        limit = rng.choice([None, 3, 4, 6, 7, 8, 9, 12, 15, 24])
        direction, special = rng.choice(["right", "left"]), rng.random() < 0.8
        variant = rng.choice(["uncased", "cased", "added"])
        cases.append(encode(variant, first, second, limit, direction, special))
    return cases


# --- every code point ---

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
NORMALIZERS = ["uncased", "cased", "cased_stripped", "lower_unstripped", "untouched"]
# What "a" + c + "b" becomes with the vocabulary [UNK], a, b, ab.
CLASS_VOCAB = {"[UNK]": 0, "a": 1, "b": 2, "ab": 3}
CLASSES = {(3,): "dropped", (1, 2): "space", (1, 0, 2): "isolated", (0,): "letter"}


def run_lengths(values):
    runs = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def fnv1a(data, value=0xCBF29CE484222325):
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def block_hashes(normalizer, text):
    """text(c) normalised, a line for each code point, hashed over every 4096 of them."""
    hashes = []
    for first in range(0, 0x110000, 4096):
        block = (c for c in range(first, first + 4096) if not 0xD800 <= c < 0xE000)
        lines = (normalizer.normalize_str(text(chr(c))) + "\n" for c in block)
        hashes.append(f"{fnv1a(''.join(lines).encode()):x}")
    return hashes


def code_points():
    classes, hashes = {}, {}
    for name in NORMALIZERS:
        normalizer = VARIANTS[name].normalizer
        t = tokenizer(vocab=CLASS_VOCAB)
        t.normalizer = normalizer
        classes[name] = run_lengths(
            CLASSES[tuple(t.encode(f"a{chr(c)}b").ids)] for c in CODE_POINTS)
        hashes[name] = block_hashes(normalizer, lambda c: f"a{c}b")
    # U+1B44 (combining class 9) goes before U+302E (224) unless what is between has class 0.
    reordered = block_hashes(VARIANTS["uncased"].normalizer, lambda c: f"a\u302e{c}\u1b44b")
    single_word = Tokenizer(models.WordPiece({"[UNK]": 0, "x": 1}, unk_token="[UNK]"))
    single_word.add_tokens([raw("x", single_word=True)])
    words = run_lengths(single_word.encode(f"x{chr(c)}").ids[0] == 0 for c in CODE_POINTS)
    return {"classes": classes, "normalized_hashes": hashes, "reordered_hashes": reordered,
            "word": words}


def invalid_utf8():
    rng = random.Random(7)
    strings = [bytes.fromhex(s) for s in sample_texts.INVALID_UTF8]
    for _ in range(400):
        text = sample_texts.mixed(rng, list(VOCAB)).encode()
        at = rng.randrange(len(text) + 1)
        cut = rng.choice([0, 1, 2])
        strings.append(text[:at] + rng.randbytes(rng.choice([0, 1, 2, 3])) + text[at + cut:])
        strings.append(rng.randbytes(rng.randrange(1, 12)))
    result = []
    for s in strings:
        try:
            s.decode()
        except UnicodeDecodeError as error:
            result.append({"hex": s.hex(), "at": error.start})
    return result


def write(name, text):
    (HERE / name).write_text(text, "utf-8")


def dump(value, indent=None):
    separators = None if indent else (",", ":")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)


def check_against(path):
    """The model's own tokenizer.json agrees with the "uncased" variant."""
    model = Tokenizer.from_file(path)
    model.no_truncation()
    model.no_padding()
    for text in sample_texts.all_texts(random.Random(1), list(VOCAB)):
        assert model.encode(text).ids == VARIANTS["uncased"].encode(text).ids, text


def main():
    if len(sys.argv) > 1:
        check_against(sys.argv[1])
    variants = {}
    for name, t in VARIANTS.items():
        variants[name] = json.loads(t.to_str())
        del variants[name]["model"]["vocab"]
    write("variants.json", "{\n" + ",\n".join(
        f"{dump(name)}: {dump(value)}" for name, value in variants.items()) + "\n}\n")
    cases = make_cases()
    write("cases.jsonl", "".join(dump(case) + "\n" for case in cases))
    write("code_points.json", dump(code_points()) + "\n")
    invalid = invalid_utf8()
    write("invalid.json", "[\n" + ",\n".join(dump(case) for case in invalid) + "\n]\n")
    print(len(cases), "cases,", len(invalid), "invalid strings")


if __name__ == "__main__":
    main()
