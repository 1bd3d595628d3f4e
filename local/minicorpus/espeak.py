"""espeak-ng through ctypes, made to give the same samples for the same request.

The library carries state from one utterance to the next (twenty calls give twenty waveforms) and seeds its noise with
the clock. So it is unloaded and loaded again for every utterance, and its generator seeded. There is one handle per
process: two at once would break the reload, so use processes, not threads.
"""

import _ctypes
import ctypes

import espeakng_loader
import numpy as np

from pelasr.errors import PelasrError

SYNCHRONOUS = 2  # the callback runs inside espeak_Synth
DO_NOT_EXIT = 0x8000
UTF8 = 1
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
AudioCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_library: ctypes.CDLL | None = None


def reload() -> tuple[ctypes.CDLL, int]:
    """A freshly loaded, seeded library and its sampling rate in Hz."""
    global _library
    if _library is not None:
        _ctypes.dlclose(_library._handle)
    _library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = _library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), DO_NOT_EXIT)
    if rate <= 0:
        raise PelasrError(f"espeak-ng does not start (code {rate}): pip install --force-reinstall espeakng-loader")
    _library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    return _library, rate


def synthesise(text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> tuple[np.ndarray, int]:
    """Speak `text`.

    voice: `language` or `language+variant`; rate: words a minute; pitch, pitch_range: 0 to 100, espeak's scales.
    Returns int16 samples `(N,)` and their rate in Hz. Raises PelasrError on a voice that espeak lacks.
    """
    library, sampling_rate = reload()
    pieces = []

    @AudioCallback
    def collect(samples, count, events):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise PelasrError(f"espeak-ng has no voice {voice!r}")
    for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
        library.espeak_SetParameter(parameter, value, 0)
    encoded = text.encode() + b"\0"
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, UTF8, None, None)
    if not pieces:
        raise PelasrError(f"espeak-ng gave no samples for {text!r} in voice {voice!r}")
    return np.concatenate(pieces), sampling_rate
