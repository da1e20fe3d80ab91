"""Where the native kernels are not compiled, none of these tests can be imported."""

from __future__ import annotations

from engine.backends.registry import has_native_kernels

collect_ignore_glob = [] if has_native_kernels() else ["test_*.py"]
