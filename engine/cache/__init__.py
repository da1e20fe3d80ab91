"""Bookkeeping of K/V blocks: who holds which, and whose content may be used again.

pool     reference-counted blocks, free lists, eviction order
prefix   which block holds the K/V of which prefix, and to what depth
manager  what a scheduler calls: match, admit, grow, trim, commit, free

Blocks are integers; the memory behind them belongs to a backend.
"""

from engine.cache.manager import CommitState, KVCacheManager
from engine.cache.prefix import PrefixMatch

__all__ = ["CommitState", "KVCacheManager", "PrefixMatch"]
