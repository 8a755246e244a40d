"""Makes assets/speech/hello.wav, the recording that is used when none is given: about six seconds by the offline voice."""

import wave
from pathlib import Path

import numpy as np

from aa.media import SAMPLE_RATE, replacing
from aa.speech import speak

TEXT = "Hello! I was a single photo a minute ago. Now every one of my particles moves with the sound you hear."

if __name__ == "__main__":
    out = Path(__file__).resolve().parent / "speech" / "hello.wav"
    out.parent.mkdir(exist_ok=True)
    speech = speak(TEXT, voice="joe", seed=0)
    samples = np.round(np.concatenate([speech.audio, np.zeros(SAMPLE_RATE // 4, np.float32)]) * 32767).astype("<i2")
    with replacing(out) as part, wave.open(str(part), "wb") as sound:
        sound.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())
    print(f"{out.name}: {len(samples) / SAMPLE_RATE:.2f} s")
