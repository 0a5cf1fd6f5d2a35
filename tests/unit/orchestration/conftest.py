from __future__ import annotations

from tests.fake_marketdata import clean_settings, fake, pod_of

__all__ = ["clean_settings", "fake", "pod_of"]
