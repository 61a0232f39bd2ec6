"""One paper, one file. No file here imports another: each can be read alone and compared with its neighbour."""
