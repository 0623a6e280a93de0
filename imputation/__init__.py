"""Loss and its repair: loss processes, masks, presence, imputers, and how they are trained and judged.

Speaks tensors and a presence mask; knows nothing of packets, clocks or sockets, and of no named encoder.
"""
