from sidecar.tap.transformers.api import attach

__all__ = ["attach"]
