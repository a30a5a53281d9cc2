"""Convert an SQCodec checkpoint to a Transformers folder.

    python conversion_scripts/convert_sqcodec.py zhai-lw/SQCodec --preset sqcodec-6kbps --output codec-6kbps

The same as `fsqcodec convert sqcodec`; `--help` lists the options.
"""

import sys

from fsqcodec_cli import app

app(["convert", "sqcodec", *sys.argv[1:]])
