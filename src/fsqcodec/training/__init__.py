"""Training of codecs: the clips, the quantizer while it learns, losses, perceptual features, discriminators."""
