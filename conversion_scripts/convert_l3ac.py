"""Convert an L3AC checkpoint to a Transformers folder.

    python conversion_scripts/convert_l3ac.py zhai-lw/L3AC --preset l3ac-1kbps --output codec-1kbps

The same as `fsqcodec convert l3ac`; `--help` lists the options.
"""

import sys

from fsqcodec_cli import app

app(["convert", "l3ac", *sys.argv[1:]])
