"""Convert a NeuCodec or distill-NeuCodec checkpoint to a Transformers folder.

    python conversion_scripts/convert_neucodec.py neucodec neuphonic/neucodec --output neucodec
    python conversion_scripts/convert_neucodec.py distill-neucodec neuphonic/distill-neucodec --output distill-neucodec

The same as `fsqcodec convert neucodec` and `fsqcodec convert distill-neucodec`; `--help` lists the options.
"""

import sys

from fsqcodec_cli import app

app(["convert", *sys.argv[1:]])
