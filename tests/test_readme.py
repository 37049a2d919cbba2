"""The README tells the truth: its examples run against a real server, its tables are those of the code.

Rule: what a reader copies from the page is what is run here, taken from the page itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.house import serving, settings_for
from uim.__main__ import main
from uim.config import VARIABLES, Settings, read_settings
from uim.errors import Cut
from uim.wire.codec import KNOWN_TYPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RUN_WITHIN_S = 20.0


def block(mark: str) -> str:
    """The fenced block after the comment <!-- mark -->."""
    found = re.findall(rf"^<!-- {mark} -->\n```\w*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"{len(found)} blocks are marked {mark}"
    return str(found[0])


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, without their heads."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not set(line) <= set("|- ")]


def named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


async def run(command: list[str], folder: Path) -> str:
    """What a command prints; it has to succeed."""
    with trio.fail_after(RUN_WITHIN_S):
        ran = await trio.run_process(
            command, cwd=folder, capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    said = ran.stdout.decode()
    assert ran.returncode == 0, said
    return said


async def test_the_client_talks(database_url: str, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(block("client"))
    async with serving(settings_for(database_url, redis_url)) as server:
        said = await run([sys.executable, "talk.py", server.url], tmp_path)
    wanted = ["alice: stored as message \\d+", "bob:   Hello, Bob!", "alice: delivered at .*Z", "alice: read at .*Z"]
    assert re.fullmatch("\n".join(wanted) + "\n", said), said


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_requests_by_curl_work(database_url: str, redis_url: str, tmp_path: Path) -> None:
    commands = block("curl")
    assert "URL=http://127.0.0.1:8080\n" in commands
    async with serving(settings_for(database_url, redis_url)) as server:
        said = await run(["bash", "-euc", commands.replace("http://127.0.0.1:8080", server.url)], tmp_path)
    sent, page = said.splitlines()
    assert '"seq":1' in sent
    assert '"content":"Hello, Dave!"' in page


def test_the_two_commands_stand_as_they_are_run_by_machine() -> None:
    assert block("run") == "python3 -m venv .venv && .venv/bin/pip install '.[embedded]' && .venv/bin/uim dev\n"
    assert block("test") == ".venv/bin/pip install -e '.[test]' && .venv/bin/pytest\n"


def defaults() -> Settings:
    required = {
        "UIM_DATABASE_URL": "postgresql://",
        "UIM_REDIS_URL": "redis://",
        "UIM_JWT_KEYS": f"kid:{'s' * 32}",
    }
    return read_settings(required)


def test_every_setting_is_told_with_its_default() -> None:
    told = {name: default for names, default, _ in rows("Settings")[1:] for name, default in paired(names, default)}
    assert set(told) == set(VARIABLES)
    settings = defaults()
    numbers = {name: int(found[0]) for name, default in told.items() if (found := re.match(r"\d+(?!\.)\b", default))}
    assert len(numbers) == 9
    for name, number in numbers.items():
        field = name.removeprefix("UIM_").lower()
        assert getattr(settings, field if hasattr(settings, field) else f"{field}_s") == number, name
    assert str(settings.bind[0]) in told["UIM_BIND"]
    assert str(settings.operations_bind) in told["UIM_OPERATIONS_BIND"]


def paired(names: str, default: str) -> list[tuple[str, str]]:
    several = named(names)
    values = default.split(", ") if len(several) > 1 and ", " in default else [default] * len(several)
    return list(zip(several, values, strict=True))


def test_every_close_code_is_told() -> None:
    codes = [code for cells in rows("The WebSocket in brief") for code in re.findall(r"\b\d{4}\b", cells[0])]
    # 1006 is what a client sees of a torn connection; nobody sends it.
    assert sorted(map(int, codes)) == sorted({cut.close_code for cut in Cut} | {1006})


def test_every_frame_of_a_client_is_told() -> None:
    section = README.split("| from the client | |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([A-Z_]+)`", section, re.MULTILINE)) == KNOWN_TYPES


def test_every_command_is_told() -> None:
    told = {name.split()[1] for cells in rows("Commands") for name in named(cells[0])}
    assert told == set(main.commands)


def test_files_that_are_named_are_there() -> None:
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    paths = {name for name in named(prose) if re.fullmatch(r"(uim|tests|schema|deploy|loadtest|\.ci)/[\w./]*|LICENSE", name)}
    assert len(paths) > 8
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


async def test_paths_of_the_api_are_there(database_url: str, redis_url: str) -> None:
    async with serving(settings_for(database_url, redis_url)) as server:
        known = {re.sub(r"\{\w+\}", "{}", path) for path in (await server.http.get("/api/openapi.json")).json()["paths"]}
    told = {path for cells in rows("The HTTP API in brief")[1:] for path in expanded(named(cells[0]))}
    assert told == known - {"/api/openapi.json"}


def expanded(names: list[str]) -> list[str]:
    """`/api/a/b` · `c` · `/{d}`: c stands beside the row's first path, /{d} beneath it."""
    paths: list[str] = []
    for name in names:
        if name.startswith("/api"):
            full = name.split("?")[0]
        elif name.startswith("/"):
            full = paths[0] + name
        elif name.startswith("?"):
            continue
        else:
            full = paths[0].rsplit("/", 1)[0] + "/" + name
        paths.append(full)
    return [re.sub(r"\{\w+\}", "{}", path) for path in paths]
