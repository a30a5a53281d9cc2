"""How good decoded audio is: pure metrics on two waveforms, their alignment, recognition errors, `evaluate` modules."""
