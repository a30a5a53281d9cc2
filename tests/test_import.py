"""Importing the package registers its classes and changes nothing else."""

import json
import subprocess
import sys

import fsqcodec

IMPORT_SCRIPT = """
import json, logging, os, random, socket, sys, threading, warnings

import numpy as np
import torch
import transformers

def facts():
    return {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()],
        "random": [repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().tolist()],
        "logging": [logging.root.level, repr(logging.root.handlers), transformers.logging.get_verbosity()],
        "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
                  torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                  str(torch.get_default_device())],
        "environment": dict(os.environ),
        "warnings": repr(warnings.filters),
        "files": sorted(os.listdir()),
    }

def connect(*_):
    raise AssertionError("importing fsqcodec opens a connection")

# what importing transformers' own model code sets up is not ours
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
socket.socket.connect = socket.getaddrinfo = connect
before = facts()
import fsqcodec
after = facts()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def test_importing_the_package_changes_nothing_else(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_SCRIPT], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []
    assert run.stderr == ""


def test_public_names_exist():
    for name in ("CodecConfig", "CodecModel", "CodecFeatureExtractor", "convert_checkpoint", "list_presets"):
        assert name in fsqcodec.__all__
    assert all(hasattr(fsqcodec, name) for name in fsqcodec.__all__)
