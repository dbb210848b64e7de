"""Marks for what holds on the CPU only, where PCM_DEVICE runs the host on another device."""

from __future__ import annotations

import pytest

from devtools.server import on_cpu

ON_CPU = on_cpu()
hosts_noise = pytest.mark.skipif(not ON_CPU, reason="the host draws noise between steps on its device, PCM on the CPU")
hosts_fp8 = pytest.mark.skipif(not ON_CPU, reason="the host's fp8 kernel on a GPU does not write fp32 with a bias")
