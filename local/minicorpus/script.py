"""What a transcript may contain: NFC letters of the language's own script, in lower case, and single spaces."""

import unicodedata

SCRIPTS = {
    "hi": "DEVANAGARI",
    "mr": "DEVANAGARI",
    "bn": "BENGALI",
    "te": "TELUGU",
    "gu": "GUJARATI",
    "ta": "TAMIL",
    "ml": "MALAYALAM",
    "kn": "KANNADA",
    "ur": "ARABIC",
    "pa": "GURMUKHI",
    "si": "SINHALA",
    "ka": "GEORGIAN",
    **dict.fromkeys(("en", "de", "es", "fr", "it", "nl", "pt", "ro"), "LATIN"),
    "ru": "CYRILLIC",
}  # first word of the Unicode names of the script's characters
# The older spelling of a Malayalam chillu (consonant, virama, joiner) and the one character that replaced it.
CHILLU = {f"{base}\u0d4d\u200d": atom for base, atom in zip("ണനരലളക", "ൺൻർൽൾൿ", strict=True)}


def clean(text: str) -> str:
    """`text` in NFC, with Malayalam chillu atomic, without zero-width characters, with single spaces."""
    for joined, atom in CHILLU.items():
        text = text.replace(joined, atom)
    text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join(text.split())


def transcript(text: str) -> str:
    """The words of `text`: cleaned, in lower case, every punctuation mark and symbol replaced by a space."""
    return clean("".join(" " if unicodedata.category(c)[0] in "PS" else c for c in clean(text))).lower()


def is_native(text: str, language: str) -> bool:
    """Whether `text` is not empty and has only letters and marks of the language's script, and spaces."""
    return bool(text) and all(
        c == " " or (unicodedata.category(c)[0] in "LM" and unicodedata.name(c).startswith(SCRIPTS[language]))
        for c in text
    )
