"""Tests in this folder need Chromium; where there is none they are not collected."""

from __future__ import annotations

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

collect_ignore = [] if CHROMIUM else ["test_profile_page.py"]
