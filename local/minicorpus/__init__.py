"""Small synthetic speech corpora, made on this machine from two wheels: texts of CLDR (babel) spoken by espeak-ng.

script.py     what a transcript may contain: normalisation, native script
meanings.py   language-independent meanings, drawn at random
cldr.py       renders a meaning in a language, to be spoken or as it is written
sentences.py  disjoint sentences for train, dev and test, with translations: the same meaning in other languages
speakers.py   disjoint pools of synthetic voices
espeak.py     the synthesiser, made deterministic
augment.py    what is done to the samples afterwards: room, noise, gain
speech.py     from sentences to wav files, in parallel
corpus.py     what the data scripts share: from a plan for each language to its data directories

What is measured on these corpora says that the machinery works; it says nothing about real speech.
"""

import importlib.metadata

from pelasr.errors import PelasrError

GENERATOR_VERSION = 4  # raise it whenever the same settings would give another text or other samples


def versions() -> dict[str, str | int]:
    """What the bytes of a corpus rest on: versions of this package and of the two wheels.

    Raises PelasrError where a wheel is missing, so call it before importing the modules that need them.
    """
    found = {"minicorpus": GENERATOR_VERSION}
    for wheel in ("babel", "espeakng-loader"):
        try:
            found[wheel] = importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            raise PelasrError(
                f"the mini corpora need {wheel}, which is not installed: pip install 'pelasr[corpora]'"
            ) from None
    return found
