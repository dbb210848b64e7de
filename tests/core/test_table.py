"""``pcm table`` without a host: what a table file may contain, and the reports of a run."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pcm_core.errors import PCMError
from scripts.table import cells, command, plan, plot, report

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD = """
title = "Test"
prompts = "prompts.txt"
steps = [1, 4]
size = [64, 64]
measures = ["clip_score", "consistency", {measure = "fid", reference = "teacher", label = "FID-SD"}]
folders = ["models"]

[bases.sd15]
checkpoint = "sd15.safetensors"

[references.teacher]
base = "sd15"
sampling = "euler/simple@25 cfg 7"
seed = 500

[[systems]]
name = "PCM"
base = "sd15"
lora = "pcm_{n}step.safetensors"

[[systems]]
name = "Teacher"
base = "sd15"
sampling = "euler/simple@{n}"
cfg = 7.5
steps = [4]

[[published]]
system = "PCM"
measure = "FID-SD"
table = 1
steps = [1, 4]
values = [8.27, 5.81]
"""


@pytest.fixture
def table(tmp_path):
    """Writes a valid table file, with one part of it replaced."""
    (tmp_path / "prompts.txt").write_text("a fox\na cat\n", "utf-8")
    (tmp_path / "models").mkdir()

    def write(old: str = "", new: str = "") -> Path:
        assert old in GOOD
        (tmp_path / "table.toml").write_text(GOOD.replace(old, new), "utf-8")
        return tmp_path / "table.toml"

    return write


def test_what_a_table_asks_for_is_commands_of_pcm_generate(table, tmp_path):
    read = plan.read_plan(table())
    (tmp_path / "models" / "loras").mkdir()
    (tmp_path / "sd15.safetensors").touch()
    (tmp_path / "models" / "loras" / "pcm_4step.safetensors").touch()
    maker = cells.Maker(read, tmp_path / "out", None)
    (one,) = read.tables
    pcm, teacher = one.systems
    made = maker.cell(one, pcm, 4)
    lora = tmp_path / "models" / "loras" / "pcm_4step.safetensors"
    files = ("--checkpoint", str(tmp_path / "sd15.safetensors"), "--lora", str(lora))
    assert made.words[2:] == (*files, "--sampling", "4", "--seed", "0", "--size", "64", "64")
    assert maker.cell(one, pcm, 1).absent == "pcm_1step.safetensors does not exist"
    assert maker.cell(one, teacher, 1).absent == "not asked for"
    assert "euler/simple@4 cfg 7.5" in maker.cell(one, teacher, 4).words
    reference = maker.reference(one, one.references["teacher"])
    assert "500" in reference.words and "euler/simple@25 cfg 7" in reference.words
    assert reference.folder.parent.parent != made.folder.parent.parent, "other seeds, other images"
    assert [column.label for column in one.columns] == ["CLIP score", "consistency", "FID-SD"]
    assert one.columns[1].against == 4 and one.prompts == ("a fox", "a cat")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"clip_score"', '"clip_scores"', 'The measure of table is "clip_scores". Expected: one of the measures: psnr'),
        ('base = "sd15"\nlora', 'base = "sd16"\nlora', 'The base of PCM is "sd16". Expected: one of [bases]: sd15'),
        (
            "steps = [1, 4]\nsize",
            "steps = [0, 4]\nsize",
            "has steps = [0, 4]. Expected: a list of different numbers from",
        ),
        (
            "steps = [1, 4]\nsize",
            "steps = [4, 4]\nsize",
            "has steps = [4, 4]. Expected: a list of different numbers from",
        ),
        ("steps = [1, 4]\nsize", "steps = []\nsize", "has steps = []. Expected: a list of different numbers from"),
        ("steps = [1, 4]\nsize", "steps = 4\nsize", "has steps = 4. Expected: a list of different numbers from"),
        ("steps = [1, 4]\nsize", "size", "Table table has no columns. Expected: step counts."),
        ("[64, 64]", "[500, 500]", "The file has size = [500, 500]. Expected: two multiples of 8, such as [512, 512]."),
        ("[64, 64]", "[64]", "The file has size = [64]. Expected: two multiples of 8"),
        ("[64, 64]", "[0, 0]", "The file has size = [0, 0]. Expected: two multiples of 8"),
        ('title = "Test"', "per_prompt = 0", "has per_prompt = 0. Expected: a whole number from 1."),
        ('title = "Test"', "count = 0", "has count = 0. Expected: a whole number from 1."),
        ('title = "Test"', "count = true", "has count = true. Expected: a whole number from 1."),
        ('title = "Test"', "seed = -1", "has seed = -1. Expected: a whole number from 0."),
        ('title = "Test"', "seed = 1.5", "has seed = 1.5. Expected: a whole number from 0."),
        ('title = "Test"', "length = 0", "has length = 0. Expected: a whole number from 1."),
        ('title = "Test"', "fps = 0", "has fps = 0. Expected: a number above 0."),
        ('title = "Test"', "title = 3", "has title = 3. Expected: a text."),
        ("cfg = 7.5", 'cfg = "seven"', '[[systems]] Teacher has cfg = "seven". Expected: a number from 0.'),
        ("cfg = 7.5", "cfg = nan", "[[systems]] Teacher has cfg = NaN. Expected: a number from 0."),
        ("cfg = 7.5", "gamma = 2", "[[systems]] Teacher has gamma = 2. Expected: a number from 0 to 1."),
        (
            "cfg = 7.5",
            'method = "Foo-X"',
            'The method of Teacher is "Foo-X". Expected: a file of one, or one of PCM',
        ),
        (
            'checkpoint = "sd15.safetensors"',
            'demo = "music"',
            'The demo of [bases.sd15] is "music". Expected: one of the',
        ),
        ("[bases.sd15]", "[bases]", "The file has bases = {"),
        ('folders = ["models"]', 'folders = "models"', 'has folders = "models". Expected: a list of different texts.'),
        ("steps = [4]", "steps = [8]", "Teacher has 8 steps. Expected: columns of table: 1, 4."),
        ("steps = [4]", "step = [4]", '[[systems]] Teacher has an entry "step". Expected: base, cfg,'),
        ('title = "Test"', 'tittle = "Test"', 'The file has an entry "tittle".'),
        (
            'reference = "teacher"',
            'reference = "coco"',
            'The reference of FID-SD is "coco". Expected: one of [references]',
        ),
        (
            '"consistency"',
            '{measure = "consistency", against = 2}',
            "consistency is against 2 steps. Expected: a column",
        ),
        ('"clip_score", ', '"clip_score", "clip_score", ', "Table table measures CLIP score twice."),
        (
            '"clip_score", ',
            '{measure = "clip_score", reference = "teacher"}, ',
            "CLIP score has a reference. Expected: no",
        ),
        ('"clip_score", ', '{measure = "clip_score", against = 4}, ', "CLIP score has against = 4."),
        ('"clip_score", ', "3, ", "has measures = [3, "),
        ('"clip_score", ', '{label = "x"}, ', 'The measure of table is "None". Expected: one of the measures'),
        (
            'base = "sd15"\nsampling = "euler/simple@25 cfg 7"',
            'folder = "x"',
            "has a folder and a seed. Expected: one of",
        ),
        ("values = [8.27, 5.81]", "values = [8.27]", "[[published]] PCM lists 2 steps, but values for 1."),
        (
            "values = [8.27, 5.81]",
            "values = [8.27, true]",
            "[[published]] has values = [8.27, true]. Expected: a list of",
        ),
        ("table = 1\n", "", "A [[published]] has no table."),
        (
            'measure = "FID-SD"',
            'measure = "FIDSD"',
            "[[published]] has FIDSD of PCM at 1, 4 steps. Expected: a table with",
        ),
        ('system = "PCM"', 'system = "PCN"', "[[published]] has FID-SD of PCN at 1, 4 steps."),
        ("table = 1\nsteps = [1, 4]", "table = 1\nsteps = [1, 2]", "[[published]] has FID-SD of PCM at 1, 2 steps."),
        ("table = 1\n", 'table = 1\nin = "x"\n', "[[published]] has FID-SD of PCM in x at 1, 4 steps."),
        ('name = "Teacher"', 'name = "pcm"', "The systems PCM and pcm share a folder. Expected: names that differ"),
        (
            'title = "Test"',
            'plot = "AES"',
            'Table table plots "AES". Expected: one of CLIP score, consistency, FID-SD.',
        ),
        ('title = "Test"', "count = 3", "count is 3, and "),
        ('"prompts.txt"', '"models"', "cannot be read ("),
        ('prompts = "prompts.txt"', "", "The table names no prompts."),
        ('name = "Teacher"', 'name = "PCM"', "There are two systems PCM."),
        ('name = "Teacher"', "", "A [[systems]] has no name."),
        ('base = "sd15"\nlora', "lora", "PCM has neither base nor checkpoint."),
        ('base = "sd15"\nsampling = "euler/simple@25 cfg 7"', "", "[references.teacher] has no folder."),
        ("measures = [", "measures = []\nunused = [", 'The file has an entry "unused".'),
        ('title = "Test"', 'systems = ["LCM"]', "cannot be read ("),
        ('title = "Test"', "title = ", "cannot be read ("),
    ],
)
def test_a_table_with_a_mistake_is_refused_in_one_sentence(table, old, new, said):
    with pytest.raises(PCMError) as refused:
        plan.read_plan(table(old, new))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_table_of_several_names_its_mistakes(table, tmp_path):
    several = GOOD + '\n[[tables]]\nname = "x"\nsystems = ["LCM"]\n'
    (tmp_path / "table.toml").write_text(several, "utf-8")
    table(), (tmp_path / "table.toml").write_text(several, "utf-8")
    with pytest.raises(PCMError, match=r"Table x has a system LCM\. Expected: one of PCM, Teacher\."):
        plan.read_plan(tmp_path / "table.toml")
    twice = GOOD + '\n[[tables]]\nname = "x"\nsystems = ["PCM", "PCM"]\n'
    for text, said in ((twice, r"\[\[tables\]\] x has systems = .*Expected: a list of different texts"),
                       (GOOD + "\n[[tables]]\nname = 'x'\n" * 2, "There are two tables x"),
                       (several.replace('systems = ["LCM"]', "measures = []"), "Table x has no measures"),
                       ("[[tables]]\nprompts = 'prompts.txt'\nmeasures = ['aes']\n", "has no systems")):  # fmt: skip
        (tmp_path / "table.toml").write_text(text, "utf-8")
        with pytest.raises(PCMError, match=said):
            plan.read_plan(tmp_path / "table.toml")


@pytest.mark.parametrize(("text", "said"), [("a fox\n\na cat\n", "Line 2 of .* is empty"), ("", "is empty")])
def test_a_prompt_file_with_empty_lines_is_refused(table, tmp_path, text, said):
    (tmp_path / "prompts.txt").write_text(text, "utf-8")
    with pytest.raises(PCMError, match=said):
        plan.read_plan(table())


def test_a_python_without_toml_says_what_to_install(table, monkeypatch):
    for module in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PCMError, match=r"reads no TOML\. Expected: Python 3\.11, or tomli\. pip install tomli\."):
        plan.read_plan(table())


def test_the_demo_world_must_be_there(table, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    with pytest.raises(PCMError, match="The demo world is not here"):
        plan.read_plan(table('"prompts.txt"', '"demo"'))
    assert plan.demo_measures() == {}


def test_the_tables_of_the_repository_are_good():
    assert len(plan.read_plan(ROOT / "benchmarks" / "demo.toml").tables) == 1
    assert len(plan.read_plan(ROOT / "benchmarks" / "paper.toml").tables) == 5


PLAUSIBLE = {
    "FID": (10, 150), "FID-SD": (3, 150), "FID-CLIP": (5, 50), "CLIP score": (4, 33), "consistency": (0.6, 0.84),
    "HPS v2": (0.2, 0.3), "AES": (4, 6), "PickScore": (0.18, 0.24), "flow magnitude": (1, 5),
    "CLIP consistency": (0.87, 0.97),
}  # fmt: skip


def test_the_numbers_of_the_paper_are_of_the_size_of_their_measure():
    """403 numbers, each within the range that its measure has in the paper's tables: a lost decimal point shows."""
    published = plan.read_toml(ROOT / "benchmarks" / "paper.toml")["published"]
    assert sum(len(one["values"]) for one in published) == 403
    for one in published:
        low, high = PLAUSIBLE[one["measure"]]
        assert all(low <= value <= high for value in one["values"]), one


def test_the_numbers_of_the_paper_stand_beside_systems_and_measures_that_are_there(tmp_path):
    text = (ROOT / "benchmarks" / "paper.toml").read_text("utf-8")
    (tmp_path / "paper.toml").write_text(text, "utf-8")
    (tmp_path / "paper").mkdir()
    for name in ("coco_30k", "cc12m_30k", "ucf101"):
        (tmp_path / "paper" / f"{name}.txt").write_text("a cat\n", "utf-8")
    read = plan.read_plan(tmp_path / "paper.toml")
    assert [len(table.published) for table in read.tables] == [56, 30, 43, 26, 12]
    for table in read.tables:
        for one in table.published:
            assert one.system in {system.name for system in table.systems}, one
            assert one.label in {column.label for column in table.columns} and set(one.values) <= set(table.steps), one
    (ours,) = (one for one in read.tables[0].published if one.system == "PCM SD1.5" and one.label == "FID-CLIP"
               and len(one.values) == 5)  # fmt: skip
    assert ours.values == {1: 11.66, 2: 9.17, 4: 9.07, 8: 9.49, 16: 10.13} and ours.source == "Table 1"
    maker = cells.Maker(read, tmp_path / "out", None)
    absent = [
        maker.cell(table, system, n).absent for table in read.tables for system in table.systems for n in table.steps
    ]
    assert all(reason == "not asked for" or reason.endswith(" not exist") for reason in absent)
    both = "v1-5-pruned-emaonly.safetensors, pcm_sd15_smallcfg_1step_converted.safetensors do not exist"
    assert both in absent, "a cell names every file it lacks"


def result(**figures: float) -> dict:
    return {"figures": figures, "absent": {}, "why": ""}


FOUND = {
    "title": "Two systems",
    "tables": [
        {
            "name": "t", "title": "A <small> table", "images": 8, "seed": 0, "steps": [1, 4], "plot": "FID-SD",
            "columns": [{"label": "FID-SD", "better": "lower", "digits": 2},
                        {"label": "AES", "better": "higher", "digits": 3}],
            "rows": [
                {"system": "PCM", "steps": 1, "evaluations": 1, **result(**{"FID-SD": 9.0, "AES": 5.1})},
                {"system": "PCM", "steps": 4, "evaluations": 4, **result(**{"FID-SD": 6.0, "AES": 5.25})},
                {"system": "LCM", "steps": 1, "evaluations": 0, "figures": {}, "absent": {},
                 "why": "lcm.pt does not exist"},
                {"system": "LCM", "steps": 4, "evaluations": 8, "figures": {"FID-SD": 7.0}, "absent": {"AES": "no aes"},
                 "why": ""},
            ],
            "published": [{"system": "PCM", "label": "FID-SD", "source": "Table 1", "values": {"1": 8.27, "4": 5.81}}],
            "notes": {"LCM": "Trained by others."},
        }
    ],
}  # fmt: skip


def test_the_markdown_has_every_row_and_every_reason():
    text = report.markdown(FOUND)
    assert "| PCM | 9.00 | 6.00 |\n| *PCM, published (Table 1)* | 8.27 | 5.81 |\n| LCM | - | 7.00 |" in text
    assert "| system | 1 step | 4 steps |" in text
    assert "**calls of the network for one image**" in text and "| LCM | - | 8 |" in text
    assert "**AES**, higher is better" in text and "| PCM | 5.100 | 5.250 |" in text
    assert "- LCM (1): lcm.pt does not exist" in text and "- AES (LCM 4): no aes" in text
    assert "Notes:\n\n- LCM: Trained by others.\n" in text


def test_the_csv_has_every_figure():
    rows = list(csv.DictReader(io.StringIO(report.as_csv(FOUND))))
    assert len(rows) == 5 + 2
    assert rows[0] == {"table": "t", "system": "PCM", "steps": "1", "evaluations": "1", "measure": "FID-SD",
                       "value": "9.0", "source": "measured"}  # fmt: skip
    assert [row["value"] for row in rows if row["source"] == "Table 1"] == ["8.27", "5.81"]


def test_the_plot_has_a_line_a_system_over_evaluations():
    tree = ElementTree.fromstring(plot.svg(FOUND["tables"][0]))
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.attrib for line in tree.iter(f"{space}polyline")]
    assert len(lines) == 3 and sum("stroke-dasharray" in line for line in lines) == 1
    xs = [float(point.split(",")[0]) for point in lines[0]["points"].split()]
    one, eight = plot.LEFT, plot.WIDTH - plot.RIGHT
    assert xs == pytest.approx([one, one + (eight - one) * 2 / 3], abs=0.1), "4 is two thirds of the way from 1 to 8"
    texts = [text.text for text in tree.iter(f"{space}text")]
    assert "A <small> table" in texts and {"PCM", "LCM"} <= set(texts)
    empty = {**FOUND["tables"][0], "rows": [], "published": []}
    assert "No figures." in plot.svg(empty)


def test_two_runs_are_compared(tmp_path, capsys):
    for name, change in (("a", 0.0), ("b", 0.5)):
        found = json.loads(json.dumps(FOUND))
        found["tables"][0]["rows"][0]["figures"]["FID-SD"] += change
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps(found), "utf-8")
    del found["tables"][0]["rows"][3]
    (tmp_path / "b" / "table.json").write_text(json.dumps(found), "utf-8")
    command.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b" / "table.json")])
    text = capsys.readouterr().out
    assert "| t | PCM | 1 | FID-SD | 9.0000 | 9.5000 | +0.5000 |" in text
    assert "4 figures in both, 1 only in the first, 0 in the second." in text
    with pytest.raises(SystemExit, match=r"table\.json cannot be read .*Expected: a table\.json of pcm table"):
        command.main(["--compare", str(tmp_path), str(tmp_path / "a")])
    found["tables"][0]["rows"][0].pop("figures")
    (tmp_path / "later.json").write_text(json.dumps(found), "utf-8")
    with pytest.raises(
        SystemExit, match=r"later\.json cannot be read \('figures'\)\. Expected: a table\.json of pcm table"
    ):
        command.main(["--compare", str(tmp_path / "later.json"), str(tmp_path / "a")])
    (tmp_path / "table.json").write_text('{"tables": []}', "utf-8")
    with pytest.raises(SystemExit, match="have no figure in common"):
        command.main(["--compare", str(tmp_path), str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="Give a table file, or --compare"):
        command.main([])


@pytest.mark.parametrize(
    ("cfg", "steps", "calls"), [("1", 4, 4), ("3", 4, 8), ("3, 1, 1, 1", 4, 5), ("5, 1", 4, 6), ("3, 1, 1, 1", 2, 3)]
)
def test_the_calls_of_the_network_count_the_negative_prompt(tmp_path, cfg, steps, calls):
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"file": "x", "cfg": cfg, "steps": steps}) + "\n", "utf-8")
    assert cells.evaluations(tmp_path) == calls


def test_the_commands_of_a_table_are_printed(table, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    (tmp_path / "sd15.safetensors").touch()
    command.main([str(table()), "--commands", "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"pcm generate {tmp_path}/out/prompts/table-") and "--seed 500" in lines[0]
    assert "# pcm_4step.safetensors does not exist, for PCM, 4 steps" in lines
    assert not (tmp_path / "out").exists()


def test_the_files_that_a_table_lacks_are_listed_without_any(capsys, monkeypatch, tmp_path):
    """As the README says of ``--commands``, even in a fresh clone without prompt files."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    command.main([str(ROOT / "benchmarks" / "paper.toml"), "--commands", "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("# ") for line in lines) and len({line.split()[1] for line in lines}) == len(lines)
    assert "# sd_turbo.safetensors does not exist, for SD-Turbo, 1 step; SD-Turbo, 2 steps; 3 more" in lines
    assert "# PickScore_v1 does not exist, for the measures of [networks] pick" in lines
    assert (
        f"# {ROOT}/benchmarks/paper/ucf101.txt does not exist, for DDIM video, 1 step; DDIM video, 2 steps; 10 more"
        in (lines)
    )
