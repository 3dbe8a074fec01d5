"""Speech made on the spot by eSpeak NG, whose library the `espeakng-loader` wheel carries."""

import ctypes
import io
import wave
from pathlib import Path

import espeakng_loader
import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
_SYNCHRONOUS = 2
_UTF8 = 1


def speech(text: str) -> npt.NDArray[np.float32]:
    """`text` spoken in English: mono, SAMPLE_RATE, from -1 to 1."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(Path(espeakng_loader.get_data_path())).encode(), 0)
    assert rate > 0, "eSpeak NG did not start"
    parts: list[npt.NDArray[np.int16]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int) -> int:
        if count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(take)
    library.espeak_SetVoiceByName(b"en")
    spoken = text.encode()
    library.espeak_Synth(spoken, len(spoken) + 1, 0, 0, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    library.espeak_Terminate()
    sound = np.concatenate(parts).astype(np.float32) / 32768
    moments = np.arange(int(len(sound) * SAMPLE_RATE / rate)) * rate / SAMPLE_RATE
    return np.interp(moments, np.arange(len(sound)), sound).astype(np.float32)


def wav(sound: npt.NDArray[np.float32], *, rate: int = SAMPLE_RATE) -> bytes:
    """A file of that sound, in 16 bits."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return made.getvalue()
