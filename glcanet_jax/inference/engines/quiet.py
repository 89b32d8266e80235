"""Packages that tell their makers what they are used for, imported so that they cannot."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Packages imported inside find none of what they would tell their makers by: OpenVINO sends word of every import."""
    name = "openvino_telemetry"
    before = {key: module for key, module in sys.modules.items() if key.split(".")[0] == name}
    for key in before:
        del sys.modules[key]
    sys.modules[name] = None  # an import of it fails, as where it is not installed
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(before)
