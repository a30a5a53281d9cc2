"""Classical codecs, the model that comes with the package, and codecs of your own, on the evaluation speech.

Writes quality.md, quality.json and quality.png.

    python benchmarks/quality.py ../shared/audio/manifest.jsonl:speech_eval/ --recognizer openai/whisper-base \\
        [--codec NAME_OR_FOLDER ...] [--output FOLDER]

The manifest has the transcripts and the languages. It is `fsqcodec evaluate` with a fixed list of codecs: the whole
report, with audio, is in --output. An interrupted run goes on where it stopped. The programs are those of Debian's
opus-tools, codec2 and speex.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from fsqcodec.evaluation.plots import rate_quality_plot
from fsqcodec.evaluation.report import PLOTTED, TITLES, write_reports
from fsqcodec.evaluation.run import Settings, evaluate

HERE = Path(__file__).parent
CODECS = (
    "speech-3kbps-v2",
    "speech-3kbps",
    "codec2:700C",
    "codec2:1200",
    "codec2:2400",
    "codec2:3200",
    "speex:1",
    "opus:6",
    "opus:8",
    "opus:12",
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("audio", nargs="+", help="what `fsqcodec evaluate` takes")
parser.add_argument("--codec", action="append", default=[], help="another codec beside the fixed list")
parser.add_argument("--recognizer", help="speech recognition model, for word errors")
parser.add_argument("--output", type=Path, default=HERE / "quality", help="folder for the whole report")
arguments = parser.parse_args()

settings = Settings(tuple(arguments.audio), (*CODECS, *arguments.codec), recognizer=arguments.recognizer)
command = shlex.join(["python", "benchmarks/quality.py", *sys.argv[1:]])
summary = evaluate(settings, arguments.output, command=command)
report, _ = write_reports(arguments.output)
shutil.copy(report, HERE / "quality.md")
shutil.copy(arguments.output / "summary.json", HERE / "quality.json")
(HERE / "quality.png").write_bytes(rate_quality_plot(summary, {name: TITLES[name] for name in PLOTTED}))
print(report.read_text())
