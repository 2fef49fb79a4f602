"""Where a model comes from: `http(s)://` and `file://`, behind `base.Origin`."""
