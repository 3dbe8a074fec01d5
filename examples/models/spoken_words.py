"""Writes down spoken English, on pocketsphinx: `pip install pocketsphinx` beside the coordinator.

It is small and old; told with the option `words` which words there are, it hears them well.
"""

import io
import wave

from pocketsphinx import Decoder

from moc.kernel.errors import InvalidRequest

RATE = 16_000
FRAMES_PER_S = 100


class Model:
    def load(self, words=()):
        self.decoder = Decoder(samprate=RATE, cmn="batch", loglevel="FATAL")
        if words:
            grammar = f"#JSGF V1.0; grammar words; public <said> = ( {' | '.join(words)} )+;"
            self.decoder.add_jsgf_string("words", grammar)
            self.decoder.activate_search("words")

    def transcribe(self, sound, asked):
        frames = samples(sound)
        self.decoder.start_utt()
        self.decoder.process_raw(frames, full_utt=True)
        self.decoder.end_utt()
        heard = self.decoder.hyp()
        return {
            "text": heard.hypstr if heard else "",
            "language": "en",
            "duration": len(frames) / 2 / RATE,
            "segments": [segment(number, part) for number, part in enumerate(self.decoder.seg() or ())],
        }


def samples(sound):
    try:
        with wave.open(io.BytesIO(sound)) as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            frames = file.readframes(file.getnframes())
    except (EOFError, wave.Error) as error:
        raise InvalidRequest(f"the file is no WAV: {error}") from None
    if form != (1, 2, RATE):
        raise InvalidRequest("the WAV must have one channel of 16-bit samples at 16 kHz")
    return frames


def segment(number, part):
    return {
        "id": number,
        "start": part.start_frame / FRAMES_PER_S,
        "end": part.end_frame / FRAMES_PER_S,
        "text": part.word,
    }
