"""Which characters texts hold in good faith, and commands that remove the others."""

import subprocess

import pytest

from pelasr.data.characters import named, remover, strange

GOOD = {
    "Persian": "می‌خواهم خانه‌ها هـ.ش ه‍.ش",
    "Urdu": "پاکستان ۲۰۲۰؁ میں",
    "Arabic, a verse": "بِسْمِ ٱللَّهِ ۝١",
    "Hindi": "क्‍ष राज‌नीति",
    "Marathi": "तर्‍हा",
    "Bengali": "র‍্যাব",
    "Sinhala": "ශ්‍රී ලංකා",
    "Malayalam": "അവന്‍",
    "Kannada": "ರ‍್ಯಾಲಿ",
    "Khmer": "ភាសា\u200bខ្មែរ",
    "Thai": "ภาษา\u200bไทย",
    "Burmese": "မြန်မာ\u200bစာ ဢ\ufe00",
    "Mongolian": "ᠮᠣᠩᠭᠣᠯ\u180eᠠ ᠪᠢᠴᠢᠭ\u180b",
    "Japanese": "葛\U000e0100城市　です",
    "French": "« là » l’été 12\u202f000",
    "emoji and signs": "ok 👍 €5 – 50 % ☕",
    "a tab": "a\tb",
    "nothing": "",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_a_script_uses_is_not_strange(text):
    assert strange(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\0b\0", ["U+0000 NULL"]),
        ("\x1b[1m\x7f", ["U+001B ESCAPE", "U+007F DELETE"]),
        ("x\x85y", ["U+0085 CONTROL"]),
        ("hel\u200clo \u200d", ["U+200C ZERO WIDTH NON-JOINER", "U+200D ZERO WIDTH JOINER"]),
        ("нет\u200b", ["U+200B ZERO WIDTH SPACE"]),
        ("नम\u200bस्ते", ["U+200B ZERO WIDTH SPACE"]),
        ("\u200fשלום\u200e", ["U+200F RIGHT-TO-LEFT MARK", "U+200E LEFT-TO-RIGHT MARK"]),
        ("\u061cسلام", ["U+061C ARABIC LETTER MARK"]),
        ("Schiff\u00adfahrt", ["U+00AD SOFT HYPHEN"]),
        ("a\ufeffb\u2060c", ["U+FEFF ZERO WIDTH NO-BREAK SPACE", "U+2060 WORD JOINER"]),
        ("a\u2028b\u2029", ["U+2028 LINE SEPARATOR", "U+2029 PARAGRAPH SEPARATOR"]),
        ("\ue000\U000f0000", ["U+E000 PRIVATE USE", "U+F0000 PRIVATE USE"]),
        ("a\u115f\u3164", ["U+115F HANGUL CHOSEONG FILLER", "U+3164 HANGUL FILLER"]),
        ("\u2764\ufe0f", ["U+FE0F VARIATION SELECTOR-16"]),
        ("a\u034fb", ["U+034F COMBINING GRAPHEME JOINER"]),
    ],
)
def test_what_is_not_seen_is_strange(text, found):
    assert list(map(named, strange(text))) == found


def test_what_is_unassigned_says_in_which_unicode():
    assert named(strange("\U000e0fff")[0]).startswith("U+E0FFF unassigned in Unicode ")
    assert strange("\ufffe") == ["\ufffe"]


@pytest.mark.parametrize("folder", ["plain", "with space", "it's"])
def test_the_command_removes_what_is_strange_and_leaves_the_rest(tmp_path, folder):
    import shlex

    lines = [
        "u1 می‌خواهم hel\u200clo\u200b",
        "u2 a\0b\u2028c\x0bd",
        "u3 ភាសា\u200bខ្មែរ x\u200b",
        "u4 \ue000\ufeff€\u00ad",
    ]
    path = tmp_path / folder
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    text = "\n".join(lines)
    found = [character for line in lines for character in strange(line)]
    command = remover(found, text, shlex.quote(str(path)))
    subprocess.run(["bash", "-c", command], check=True)
    assert path.read_text(encoding="utf-8") == "u1 می‌خواهم hello\nu2 ab c d\nu3 ភាសា\u200bខ្មែរ x\nu4 €\n"


def test_a_simple_case_has_a_simple_command():
    assert remover("\u200c", "hel\u200clo", "text") == "perl -CSD -i -pe 's/[\\x{200C}]//g' text"
