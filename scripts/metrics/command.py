"""Measure a folder of images or clips, alone or against another.

    pcm metrics A B               similarity of items with the same name: PSNR, SSIM
    pcm metrics A B --inception weights-inception-2015-12-05-6726825d.pth      and FID
    pcm metrics A B --clip clip-vit-large-patch14       and FID-CLIP, consistency, CLIP score
    pcm metrics A --hps HPS_v2_compressed.pt --pick PickScore_v1 --aes sac+logos+ava1-l14-linearMSE.pth
    pcm metrics A                 for clips: optical flow, change between frames

A is measured against the reference B: other images of the same prompts, or the teacher's own images, which makes FID
the FID-SD of the PCM paper. Both are folders, or ``http://HOST:PORT/history/PROMPT_ID`` for the images of a running
ComfyUI; ``pcm generate`` makes a folder of any size. Features are cached beside a folder, in ``A.features``. Nothing is
downloaded without ``--download``, and nothing is unpickled.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .measures import CLIP, MEASURES, Files, Folder, Networks, own_features
from .networks import check_files
from .report import Report
from .sources import SourceError, read

NETWORKS = """the networks, by name; each brings a licence of its own
  inception  weights-inception-2015-12-05-6726825d.pth, github.com/toshas/torch-fidelity (Apache-2.0)
  clip       the folder openai/clip-vit-large-patch14 of Hugging Face (MIT); which CLIP the paper took is not known
  hps, hps21 HPS_v2_compressed.pt, HPS_v2.1_compressed.pt of xswu/HPSv2 (Apache-2.0); with --clip, for its tokenizer
  pick       the folder yuvalkirstain/PickScore_v1 (MIT), with the tokenizer and preprocessor of its base,
             laion/CLIP-ViT-H-14-laion2B-s32B-b79K, beside its weights
  aes        sac+logos+ava1-l14-linearMSE.pth, github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0);
             with --clip openai/clip-vit-large-patch14 and no other, which is what it reads
  raft       raft_large_C_T_SKHT_V2-ff5fadd5.pth of torchvision (BSD-3-Clause)
"""


def measure(options: argparse.Namespace) -> Report:
    """Compute every measure for which the sources and options suffice."""
    files = files_of(options)
    check_files(files.paths)
    a_items, b_items = read(options.a), read(options.b) if options.b else []
    shared = len({item.name for item in a_items} & {item.name for item in b_items})
    report = Report(f"A: {len(a_items)} items" + (f", B: {len(b_items)}, {shared} of one name" if b_items else ""))
    networks = Networks(files)
    a, b = Folder(a_items, _place(options.a), networks), Folder(b_items, _place(options.b), networks)
    for one in MEASURES.values():
        if (b_items or not one.reference) and (not one.clips or any(item.moves for item in a_items)):
            report.take(one.label, lambda one=one: one.take(a, b))
    if b_items and (own := files.features):
        report.take("Frechet distance", lambda: own_features(a, b, own))
    return report


def files_of(options: argparse.Namespace) -> Files:
    names = ("inception", "clip", "hps", "hps21", "pick", "aes", "raft", "features", "download", "device")
    return Files(**{name: getattr(options, name) for name in names})


def _place(source: str | None) -> Path | None:
    """The folder beside which the features of a source are cached."""
    return None if source is None or "://" in source else Path(source).resolve()


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Add the options for network files."""
    group = parser.add_argument_group("networks, from local files (see below)")
    group.add_argument("--inception", type=Path, metavar="FILE", help="for FID")
    group.add_argument("--clip", metavar="FOLDER", help="for CLIP score, FID-CLIP, consistency, AES")
    group.add_argument("--hps", type=Path, metavar="FILE", help="for HPS v2")
    group.add_argument("--hps21", type=Path, metavar="FILE", help="for HPS v2.1")
    group.add_argument("--pick", type=Path, metavar="FOLDER", help="for PickScore")
    group.add_argument("--aes", type=Path, metavar="FILE", help="for LAION's aesthetic rating")
    group.add_argument("--raft", type=Path, metavar="FILE", help="for the flow magnitude of clips")
    group.add_argument("--features", type=Path, metavar="FILE", help="a torch.export feature extractor of your own")
    group.add_argument("--download", action="store_true", help=f"fetch what is absent: Inception weights, {CLIP}")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group.add_argument("--device", default=default, help="where they run; default: %(default)s")


def parser() -> argparse.ArgumentParser:
    description = "Measure a folder of images or clips, alone or against another."
    parser = argparse.ArgumentParser(
        prog="pcm metrics", description=description, epilog=NETWORKS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("a", metavar="A", help="a folder, or http://HOST:PORT/history/PROMPT_ID")
    parser.add_argument("b", metavar="B", nargs="?", help="the reference, likewise")
    add_networks(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    try:
        report = measure(options)
    except SourceError as error:
        sys.exit(str(error))
    print(report.text())
    if options.json:
        finite = {name: value if math.isfinite(value) else None for name, value in report.figures.items()}
        content = {"a": options.a, "b": options.b, "figures": finite, "not measured": report.absent}
        options.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8", newline="\n")
