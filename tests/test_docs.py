"""What README, CONTRIBUTING and docs/ tell people to type exists, and what is marked runs.

CONTRIBUTING.md describes the convention: a code block whose info string has `runnable` is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from packaging.requirements import Requirement
from typer.main import get_command
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
# Folders of the repository that a runnable block may name.
LINKED = ("jobs", "serve_configs")
SEPARATORS = ";&|()\n"


@dataclass(frozen=True)
class Block:
    """A fenced code block: where it starts, the words after the fence, and its text."""

    document: Path
    line: int
    info: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.info[0] if self.info else ""

    @property
    def runnable(self) -> bool:
        return "runnable" in self.info

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    return [
        Block(document, token.map[0] + 1, tuple(token.info.split()), token.content)
        for token in MarkdownIt().parse(document.read_text())
        if token.type == "fence" and token.map
    ]


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
SHELL = [block for block in BLOCKS if block.language == "bash"]


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell text, as lists of words, without leading assignments."""
    without_remarks = re.sub(r"^\s*#.*$|\s#[^\n'\"]*$", "", text, flags=re.MULTILINE)
    joined = without_remarks.replace("\\\n", " ")
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=SEPARATORS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if set(word) <= set(SEPARATORS):
            if words:
                yield words
            words = []
        elif words or not re.match(r"[A-Za-z_]\w*=", word):
            words.append(word)


def cardioray_app() -> Any:
    from cardioray.cli import app

    return app


def check_cardioray(words: list[str], command: Any) -> None:
    """Follow the words through the commands of the app; unknown ones and options are refused."""
    path: list[str] = []
    for word in words:
        subcommands = getattr(command, "commands", {})
        if word.startswith("-"):
            options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
            name = word.split("=")[0]
            assert name in options | {"--help"}, f"cardioray {' '.join(path)}: no option {name}"
        elif subcommands:
            assert word in subcommands, f"cardioray {' '.join(path)}: no command {word!r}"
            command = subcommands[word]
            path.append(word)
    shown = CliRunner().invoke(cardioray_app(), [*path, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "Usage" in shown.output


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_make(words: list[str]) -> None:
    targets = [w for w in words if "=" not in w and not w.startswith("-")]
    unknown = set(targets) - make_targets()
    assert not unknown, f"the Makefile has no target {sorted(unknown)}"


def check_files(words: list[str]) -> None:
    for word in words:
        if re.match(r"(jobs|serve_configs|benchmarks|tests)/[\w/.-]+$", word):
            assert (ROOT / word).exists(), f"{word} does not exist"


def job_command(job: Path) -> list[str]:
    """The words of the cardioray command that a job stands for: ["data", "prepare"]."""
    (words,) = re.findall(r'\["cardioray", (.*)\]', job.read_text())
    return re.findall(r'"([\w-]+)"', words)


def check_command(words: list[str], app: Any) -> None:
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        check_make(arguments)
    if program == "cardioray":
        check_cardioray(arguments, app)
    check_files(words)
    for position, word in enumerate(words):
        if re.match(r"jobs/\w+\.py$", word):
            check_cardioray([*job_command(ROOT / word), *words[position + 1 :]], app)


def named(block: Block) -> str:
    return str(block)


@pytest.fixture(scope="module")
def app() -> Any:
    return get_command(cardioray_app())


@pytest.mark.parametrize("block", SHELL, ids=named)
def test_shell_blocks_name_what_exists(block: Block, app: Any) -> None:
    syntax = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert syntax.returncode == 0, f"{block}: {syntax.stderr}"
    for words in commands(block.text):
        check_command(words, app)


def run_settings(text: str) -> Iterator[tuple[str, list[str]]]:
    """Task and `--set` values of the commands that build a run."""
    for words in commands(text):
        kind = words[1:2] if words[1:2] != ["data"] else words[1:3]
        if words[0] == "cardioray" and kind[-1:] in (
            ["train"],
            ["compare"],
            ["check"],
            ["prepare"],
        ):
            values = [after for word, after in pairwise(words) if word == "--set"]
            if values:
                yield words[1 + len(kind)], values


@pytest.mark.parametrize("block", SHELL, ids=named)
def test_settings_are_those_of_the_task(block: Block) -> None:
    from cardioray.training.settings import RunConfig

    for task, values in run_settings(block.text):
        RunConfig.build(task, {}, values)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=named)
def test_python_blocks_compile(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in {"yaml", "json"}], ids=named)
def test_data_blocks_can_be_read(block: Block) -> None:
    if block.language == "yaml":
        yaml.safe_load(block.text)
    else:
        json.loads(block.text)


def runnable_documents() -> list[object]:
    found = []
    for document in DOCUMENTS:
        chosen = [b for b in BLOCKS if b.document == document and b.runnable]
        if chosen:
            marks = [pytest.mark.slow] if any("slow" in b.info for b in chosen) else []
            found.append(pytest.param(chosen, id=document.name, marks=marks))
    return found


@pytest.mark.parametrize("chosen", runnable_documents())
def test_runnable_blocks_run_in_order_in_one_folder(chosen: list[Block], tmp_path: Path) -> None:
    for folder in LINKED:
        (tmp_path / folder).symlink_to(ROOT / folder)
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    for block in chosen:
        assert block.language in {"bash", "python"}, f"{block}: cannot run {block.language!r}"
        shell = ["bash", "-euo", "pipefail", "-c", block.text]
        python = [sys.executable, "-c", block.text]
        # Its own session, so that what it leaves running can be ended with it.
        process = subprocess.Popen(
            shell if block.language == "bash" else python,
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=500)
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing was left running
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"{block} ended with {process.returncode}:\n{output}"


def anchors(document: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    tokens = MarkdownIt().parse(document.read_text())
    titles = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(document: Path) -> set[str]:
    found = set()
    for token in MarkdownIt().parse(document.read_text()):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target and not re.match(r"[a-z]+:", str(target)):
                found.add(str(target))
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_local_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{document.name} links to {link}"


def test_every_page_of_docs_is_linked() -> None:
    linked = {
        (document.parent / link.partition("#")[0]).resolve()
        for document in DOCUMENTS
        for link in links(document)
    }
    lost = [page.name for page in DOCUMENTS if page.parent.name == "docs" and page not in linked]
    assert not lost


class TestTheChecks:
    """The checks find what they are there to find."""

    def test_commands_are_cut_out_of_a_shell_text(self) -> None:
        text = (
            "# don't\nmake test ARGS='-k a b'  # why\nA=1 cardioray x \\\n  --connect && ls | wc\n"
        )
        assert list(commands(text)) == [
            ["make", "test", "ARGS=-k a b"],
            ["cardioray", "x", "--connect"],
            ["ls"],
            ["wc"],
        ]

    def test_settings_are_found(self) -> None:
        text = "cardioray data check ffr D --set a.b=1\ncardioray train image --set c=2 --set d=3\n"
        assert list(run_settings(text)) == [("ffr", ["a.b=1"]), ("image", ["c=2", "d=3"])]
        assert len(list(run_settings("".join(b.text for b in SHELL)))) > 3

    @pytest.mark.parametrize(
        "text",
        [
            "cardioray no-such-command",
            "cardioray doctor --no-such-option",
            "make nothing",
            "python jobs/no_such_job.py",
            "ray job submit --working-dir . -- python jobs/train.py ffr --no-such-option",
        ],
    )
    def test_what_does_not_exist_is_refused(self, text: str, app: Any) -> None:
        (words,) = commands(text)
        with pytest.raises(AssertionError, match=r"no command|no option|no target|does not exist"):
            check_command(words, app)


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    names = {Requirement(text).name for text in listed}
    assert sorted(name for name in names if f"`{name}`" not in explained) == []
