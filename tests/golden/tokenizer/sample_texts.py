"""Texts for make_fixture.py: every kind of input that a tokenizer may treat specially."""

PHRASES = """
The quick brown foxes weren't impressed by 3,141 lazy dogs (or were they?).
Où est la bibliothèque, s'il vous plaît ? Ça coûte 12,50 €.
Der Fluß fließt übers Moor; Größe: 1,80 m.
¿Dónde está el baño? ¡Mañana será otro día!
Não há pão; o coração está à espera.
Perché no? È già l'una e mezza.
Waar is de fiets? Hij is daar, één meter verder.
Var är sjön? Där på ön bor en åldrig älg.
Gdzie jest źródło? Zażółć gęślą jaźń.
Kde je řeka? Příliš žluťoučký kůň úpěl.
Hol van a kővár? Árvíztűrő tükörfúrógép.
Unde este casa? În țară și în oraș.
Nerede? İstanbul'da ILIK bir akşamüstü, ığdır.
Hvor er ørnen? På ækre, sá ég þig, Ísland.
Kur yra šaltinis? Ąžuolas, ėglė ir ūkas.
Đâu rồi? Trời hôm nay đẹp quá, phải không?
Πού είναι η θάλασσα; Ο ΟΔΥΣΣΕΥΣ ταξιδεύει, ᾧ ἐν ἀρχῇ.
Где находится станция? Ёж, йод и объём.
Де вокзал? Їжак їсть ґрунт, єнот п'є.
Къде е гарата? Щъркел и жаба.
Где је кућа? Њива, љубав, џеп, ђак.
Որտե՞ղ է գետը։ Բարև, աշխարհ։
სად არის მდინარე? ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ საქართველო.
איפה הים? שָׁלוֹם עוֹלָם, צה"ל.
أين المكتبة؟ السَّلَامُ عَلَيْكُم ١٢٣٤، ﷺ.
کتابخانه کجاست؟ می‌خواهم ۱۲۳ کتاب.
کتب خانہ کہاں ہے؟ ہم ٹھیک ہیں۔
ܐܝܟܐ ܐܝܬܘܗܝ ܢܗܪܐ܀
ދިވެހިރާއްޖެ ކޮބާ؟
पुस्तकालय कहाँ है? क्षत्रिय ज्ञान १२३।
গ্রন্থাগার কোথায়? বাংলা ভাষা ১২৩।
ਲਾਇਬ੍ਰੇਰੀ ਕਿੱਥੇ ਹੈ? ਪੰਜਾਬੀ।
પુસ્તકાલય ક્યાં છે? ગુજરાતી.
ପାଠାଗାର କେଉଁଠି? ଓଡ଼ିଆ।
நூலகம் எங்கே? தமிழ் மொழி.
గ్రంథాలయం ఎక్కడ? తెలుగు భాష.
ಗ್ರಂಥಾಲಯ ಎಲ್ಲಿದೆ? ಕನ್ನಡ.
ഗ്രന്ഥശാല എവിടെ? മലയാളം.
පුස්තකාලය කොහෙද? සිංහල.
ห้องสมุดอยู่ที่ไหน ภาษาไทย ๑๒๓ ฯลฯ
ຫໍສະໝຸດຢູ່ໃສ? ພາສາລາວ
དཔེ་མཛོད་ཁང་ག་པར་ཡོད། བོད་ཡིག ཱི ཷ
စာကြည့်တိုက် ဘယ်မှာလဲ။ မြန်မာ
បណ្ណាល័យនៅឯណា? ភាសាខ្មែរ ១២៣។
ᠨᠣᠮ ᠤᠨ ᠰᠠᠩ ᠬᠠᠮᠢᠭᠠ᠂ ᠮᠣᠩᠭᠣᠯ
ቤተ መጻሕፍት የት ነው? አማርኛ፡ቋንቋ።
ᏙᎢᏳᏍᏗ ᎤᏬᏪᎳᏅᎯ ꭰꮳꮃꭹ
ᓄᓇᕗᑦ ᐃᓄᒃᑎᑐᑦ᙮ ᙭ ᚛ᚑᚌᚐᚋ᚜ ᚠᚢᚦᚨᚱᚲ᛫
図書館はどこですか？カタカナ、ｶﾀｶﾅ、ﾊﾟ、がぎぐ。
图书馆在哪里？我们去北京吧！繁體字：圖書館。
도서관이 어디예요? 한국어 각값닭 ㄱㄴㄷ.
ⵜⴰⵎⴰⵣⵉⵖⵜ ߒߞߏ ߊߟߎ߫ ꕉꕜꕮ ꔔꘋ
𐌰𐍄𐍄𐌰 𐐔𐐯𐑅𐐨𐑉𐐯𐐻 𐒰𐓍 𐲀𐳀 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝐁𝐨𝐥𝐝 ①②③ Ⅷ ⅷ ½ x² H₂O ﬁﬂ ﬅ Ǆ ǅ ǆ ẞ ſ K Å Ω
مرحبا world שלום mixed ‏RTL‎ ‪LRE‬ ⁧RLI⁩
http://user:pw@example.com:8080/a/b?c=d&e=%20f#frag user.name+tag@mail.example.co.uk
def f(x): return x**2 if x != None else "n/a"  # <b>&amp;</b>
$1,234.56 €99.99 £5 ¥100 ₹42 50% 1st 2nd 10:30am 2024-11-24T05:00:00Z +49 (0)30/123456
I'm can't won't they'll he's o'clock rock'n'roll 'tis ‘quoted’ “double” «guillemets» „low“
""".strip().split("\n")

EMOJI = """
😀 😃😄 👍🏽 👩🏿‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🏴‍☠️ 🇩🇪 🇯🇵🇺🇸 🇦 ❤️ ❤ ☺︎ 1️⃣ #️⃣ *️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🫠 🪿 🧑‍🤝‍🧑 🤷🏻‍♀️ ©️ ®️ ™ ⏰ ⌚️ 🈚 🀄 🃏 ‼️ ⁉️ 〰️ ㊗️
""".split()

SPACES = [chr(c) for c in (0x20, 0x20, 0x20, 9, 10, 11, 12, 13, 0x85, 0xA0, 0x1680, 0x2000, 0x2003,
                           0x2009, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)]
INVISIBLE = [chr(c) for c in (0, 1, 7, 8, 0x1B, 0x1C, 0x1F, 0x7F, 0x80, 0x9F, 0xAD, 0x34F, 0x61C,
                              0x115F, 0x17B4, 0x180B, 0x180E, 0x200B, 0x200C, 0x200D, 0x200E, 0x202A,
                              0x202E, 0x2060, 0x2061, 0x2066, 0x2069, 0x206A, 0x3164, 0xFE00, 0xFE0F,
                              0xFEFF, 0xFFA0, 0xFFF9, 0xFFFC, 0xFFFD, 0xFFFF, 0xE000, 0xF8FF, 0x1D173,
                              0xE0001, 0xE0061, 0xE0100, 0xF0000, 0x10FFFF, 0x378, 0x890, 0x8E2,
                              0x110CD, 0x13430)]
MARKS = [chr(c) for c in (0x300, 0x301, 0x302, 0x303, 0x304, 0x306, 0x307, 0x308, 0x30A, 0x30C, 0x31B,
                          0x323, 0x327, 0x328, 0x334, 0x338, 0x340, 0x343, 0x344, 0x345, 0x360, 0x488,
                          0x591, 0x5B0, 0x5BC, 0x64B, 0x651, 0x670, 0x711, 0x7FD, 0x898, 0x8D4, 0x8E1,
                          0x93C, 0x94D, 0xE31, 0xE38, 0xE48, 0xF39, 0xF71, 0xF72, 0xF73, 0xF81,
                          0x1AB0, 0x1ABF, 0x1B44, 0x1BAA, 0x1BF2, 0x1DC0, 0x1DF6, 0x20D0, 0x20DD,
                          0x302A, 0x302E, 0x302F, 0x3099, 0x309A, 0xA953, 0xFB1E, 0xFE20, 0x11442,
                          0x11446, 0x116B6, 0x1D165, 0x1D166, 0x1D16D, 0x1D172, 0x1D17B, 0x1E000,
                          0x1E8D0, 0x1E944, 0x1E94A)]
DECOMPOSING = list("àéîõüçñÅǺếờṩΐΰᾧἄЙёѓїأؤइऩড়ਲ਼ଢ଼ொేോཀྵἀとがぱヴガ각힣") + [
    chr(c) for c in (0x130, 0x131, 0x17F, 0x1E9B, 0x212A, 0x212B, 0x2126, 0x340, 0x37E, 0x387, 0x1FEF,
                     0x2000, 0x2001, 0x2329, 0x232A, 0x2ADC, 0xF900, 0xFA0E, 0xFB1D, 0xFB2C, 0x1109A,
                     0x11938, 0x1D15E, 0x1D160, 0x1D1BB, 0x1D1C0, 0x2F800, 0x2FA1D)]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + list(
    "¡§«¶·»¿;·՚։־׀،؛؟۔।॥๏༄࿐။፠᐀᙮᚛᜵។᠀‐–—‖‘’‚“”„†‡•…‰′‹›※‼⁂⁅⁰₍℃←∑⌈〈⟨⦃⸨⸿⹃、。《「【〜・꓾꘍﴾︐﹁﹏！（＿｛･𐄀𐎟𐡗𒑰") + [
        "\u061d", "\u166d", "\u2e52", "\U000111c9", "\U00011a9b", "\U0001e95e"]
ADDED = ["[SEP]", "[CLS]", "[UNK]", "[MASK]", "[PAD]", "[sep]", "[SEP", "[[SEP]]", "<x>", "<X>", "< x>",
         "yesterday", "Yesterday", "foobar", "foobaz", "foob", "Foo Bar", "foo bar", "FOO  BAR", "été",
         "Été", "e\u0301te\u0301", "<ent>", "<ENT>", "\u0130x", "ix", "東京", "京", "東", "the", "The",
         "ab c", "AB C", "\u302e\u0301z", "\u302ez", "q\u0301", "q\u0301\u302e", "yesterdayx",
         "ayesterdayx", "dayx", "xété!", "été!", "TÉ!"]

# Offsets are those of Python's decoder: the first byte of the ill-formed sequence.
INVALID_UTF8 = """
80 bf c0 c1 c080 c1bf e08080 e09fbf f0808080 f08fbfbf f4908080 f5808080 f8888080 fc84808080 fe ff
eda080 edafbf edb080 edbfbf eda080edb080 c2 e4 e4b8 f0 f09f f09f98 6180 61c2 61e4b8 61f09f98
c261 e46161 e4b861 f0616161 f09f6161 f09f9861 c2c2a9 e4c2a9 e4b8c2a9 f09fc2a9 f09f98c2a9
4120f09f988041ff e4b8adc0af 00ff 5b5345505dff 5b534550ff e3809fe380 cc81cc e380aee380aeff
""".split()

# Where letters, marks, digits and signs live; a uniform code point is almost always unassigned.
RANGES = [(0x80, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x530, 0x8FF), (0x900, 0xDFF),
          (0xE00, 0x109F), (0x10A0, 0x139F), (0x13A0, 0x18AF), (0x1900, 0x1CFF), (0x1D00, 0x1FFF),
          (0x2000, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x33FF), (0xA000, 0xABFF), (0xABC0, 0xD7FF),
          (0xF900, 0xFFFF), (0x10000, 0x10FFF), (0x11000, 0x11FFF), (0x12000, 0x1BFFF),
          (0x1CF00, 0x1DFFF), (0x1E000, 0x1EFFF), (0x1F000, 0x1FAFF), (0xE0000, 0xE01FF)]
CJK = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2EBE0),
       (0x2F800, 0x2FA1F), (0x30000, 0x323AF), (0x3040, 0x30FF)]
HANGUL = [(0x1100, 0x11FF), (0xA960, 0xA97F), (0xAC00, 0xD7A3), (0xD7B0, 0xD7FF), (0x3130, 0x318F)]


def from_ranges(rng, ranges):
    return chr(rng.randint(*rng.choice(ranges)))


def any_code_point(rng):
    c = rng.randrange(0x110000 - 0x800)
    return chr(c if c < 0xD800 else c + 0x800)


def word(rng, vocab):
    w = rng.choice(vocab).removeprefix("##")
    if rng.random() < 0.2:
        w += rng.choice(vocab).removeprefix("##")
    return rng.choice([w, w, w, w.upper(), w.title()])


def join(rng, make, low, high):
    return "".join(make() for _ in range(rng.randint(low, high)))


def piece(rng, vocab):
    return rng.choice([
        lambda: word(rng, vocab), lambda: word(rng, vocab), lambda: word(rng, vocab),
        lambda: rng.choice(SPACES), lambda: rng.choice(SPACES), lambda: " ",
        lambda: rng.choice(PUNCTUATION), lambda: rng.choice(ADDED), lambda: rng.choice(DECOMPOSING),
        lambda: join(rng, lambda: rng.choice(MARKS), 1, 4), lambda: rng.choice(INVISIBLE),
        lambda: from_ranges(rng, RANGES), lambda: from_ranges(rng, CJK), lambda: rng.choice(EMOJI),
        lambda: chr(rng.randrange(128)), lambda: any_code_point(rng),
    ])()


def mixed(rng, vocab):
    return join(rng, lambda: piece(rng, vocab), 1, rng.choice([3, 8, 20]))


def with_added_tokens(rng, vocab):
    gap = lambda: rng.choice(["", "", " ", "  ", "a", ".", "\u3000", "\u0301", "\x0b", word(rng, vocab)])
    return join(rng, lambda: rng.choice(ADDED) + gap(), 1, 6)


def long_word(rng, vocab):
    length = rng.choice([98, 99, 100, 101, 102, 150])
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice("aeixz") * length
    if kind == 1:
        return join(rng, lambda: rng.choice("abcdefghijklmnopqrstuvwxyz"), length, length)
    if kind == 2:
        return "".join(word(rng, vocab) for _ in range(30))[:length]
    return join(rng, lambda: rng.choice(["é", "e", "ж", "e\u0301", "\u00ad"]), length, length)


def all_texts(rng, vocab):
    texts = ["", " ", "\t", "\n\r\n", " \u3000\u00a0 ", "\u200b", "\x00", "\ufffd", "\u0301", "a", "A", "##a"]
    texts += PHRASES + [p.upper() for p in PHRASES] + [p.lower() for p in PHRASES]
    texts += EMOJI + PUNCTUATION + ["x" + c + "y" for c in PUNCTUATION + SPACES + INVISIBLE + MARKS]
    texts += ["a" + c + "\u0323\u0301b" for c in DECOMPOSING]

    def some(count, make):
        texts.extend(make() for _ in range(count))

    some(450, lambda: " ".join(word(rng, vocab) for _ in range(rng.randint(1, 12))))
    some(450, lambda: join(rng, lambda: from_ranges(rng, RANGES), 1, 8))
    some(120, lambda: join(rng, lambda: rng.choice(EMOJI + ["\u200d", "\ufe0f", " ", "a"]), 1, 6))
    some(300, lambda: join(rng, lambda: rng.choice(MARKS * 2 + list("aeo ") + DECOMPOSING), 2, 10))
    some(150, lambda: join(rng, lambda: rng.choice(INVISIBLE + SPACES + list("abc")), 1, 10))
    some(200, lambda: join(rng, lambda: from_ranges(rng, CJK) + rng.choice(["", "", "a", " "]), 1, 8))
    some(120, lambda: join(rng, lambda: from_ranges(rng, HANGUL), 1, 8))
    some(40, lambda: long_word(rng, vocab) + rng.choice(["", " end", ".", "[SEP]"]))
    some(200, lambda: with_added_tokens(rng, vocab))
    some(150, lambda: join(rng, lambda: rng.choice(PUNCTUATION + ["a", " "]), 1, 10))
    some(250, lambda: join(rng, lambda: any_code_point(rng), 1, 6))
    some(450, lambda: mixed(rng, vocab))
    return texts
