"""What a tracker and a node both mean by "chunk", "message" and "swarm".

Nothing in this package imports `tracker` or `node`. All modules are pure (no clock, no socket,
no logging), except `connection`, which reads and writes frames on trio streams.
"""
