"""Marks for what holds on the CPU only, where PCM_DEVICE runs the host on another device."""

from __future__ import annotations

import os

import pytest

ON_CPU = os.environ.get("PCM_DEVICE", "cpu") == "cpu"
hosts_noise = pytest.mark.skipif(not ON_CPU, reason="the host draws noise between steps on its device, PCM on the CPU")
hosts_fp8 = pytest.mark.skipif(not ON_CPU, reason="the host's fp8 kernel on a GPU does not write fp32 with a bias")
