"""The model as a folder (FUSE): all files at once, each read waits for what is not here yet."""
