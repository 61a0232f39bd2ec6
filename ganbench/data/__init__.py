"""Images: decoding, resizing, data sets, and every source that `--images` understands."""
