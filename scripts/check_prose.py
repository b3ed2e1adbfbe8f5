"""Checks docs, docstrings, comments, messages and names against docs/contributing/style.md.

Reports words and phrases that the style page rules out, sentences of more than 30 words, docstrings that begin with a
question word, and commit subjects that are too long.

    python scripts/check_prose.py                  # all tracked files and the latest commits
    python scripts/check_prose.py docs/index.md    # some files
    python scripts/check_prose.py --message FILE   # a commit message, as a commit-msg hook

A line that ends with ``prose: allow`` and a reason is skipped.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED = ("callbacks", "src", "conf", "docs", "scripts", "*.md")
"""Pathspecs. Tests are checked on request only."""

MAX_WORDS = 30
MAX_SUBJECT = 72

NOUNS = (
    "batch|command|data|epoch|hook|image|job|loader|loop|loss|metric|phase|process|row|run|sample|script|set|split|step"
)
"""Nouns that may follow "a training"."""
PHRASES = {
    r"told": "reported, logged, named, stated",
    r"tells?": "reports, logs, states, shows",
    r"telling": "reporting",
    r"reckon(?:s|ed|ing)?": "compute, expect",
    r"for ever": "permanently",
    r"whoever": "name the actor",
    r"behind": "after, in the background",
    r"beside": "with, next to",
    r"c[oa]mes? to": "reaches, produces",
    r"g(?:o|oes|oing|one) on|went on": "continues, resumes",
    rf"a training(?!\s+(?:{NOUNS}))": "a training run",
    r"stands?|standing|stood": "is, remains, active, done",
    r"looks?": "appears, inspects, inspection",
    r"alone": "only, by itself",
    r"lean": "small",
    r"quiet(?:ly)?": "without output, idle",
    r"heed(?:s|ed|ing)?": "obeys, considers",
    r"holds?|held": "contains, keeps, is valid",
    r"meets?|met": "reaches, synchronizes",
    r"hears?|heard|deaf": "receives",
    r"born": "created, initial",
    r"nobody": "name the actor",
    r"outlives?": "survives",
    r"nothing but|those which|(?:is|are) (?-i:none)": "state what is the case",
}
ALLOWED = ("held-out", "held out")
WORDS = re.compile(rf"(?<![\w-])(?:{'|'.join(PHRASES)})(?![\w-])".replace(" ", r"\s+"), re.IGNORECASE)
QUESTIONS = re.compile(r"^(?:What|Whether|How|Who|Whose|Where|Why|Which)\b")

Text = tuple[int, str, str]
"""Line number, kind and text."""


def python_texts(source: str) -> Iterator[Text]:
    """Yields docstrings, other string literals, comments and names of a Python file."""
    docstrings: dict[int, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                docstrings[node.body[0].lineno] = docstring
    names = set[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.STRING:
            if line in docstrings:
                yield line, "docstring", docstrings.pop(line)
            else:
                yield line, "string", re.sub(r"^\w*[\"']+|[\"']+$", "", token.string)
        elif token.type == tokenize.COMMENT:
            yield line, "comment", token.string.lstrip("#: ")
        elif token.type == getattr(tokenize, "FSTRING_MIDDLE", None):
            yield line, "string", token.string
        elif token.type == tokenize.NAME and token.string not in names:
            names.add(token.string)
            yield line, "name", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", token.string).replace("_", " ")


def markdown_texts(source: str) -> Iterator[Text]:
    """Yields paragraphs, list items and table cells of a Markdown file, without code."""
    fence, start, lines = False, 1, list[str]()
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        is_fence = line.lstrip().startswith("```")
        fence ^= is_fence
        if fence or is_fence or not line.strip() or re.match(r"\s*(?:[-*|#>]|\d+\.)", line):
            if lines:
                yield start, "prose", " ".join(lines)
            lines, start = [], number
        if not fence and not is_fence and line.strip():
            start = start if lines else number
            for cell in line.strip("| ").split(" | ") if line.startswith("|") else [line]:
                lines.append(cell)
                if line.startswith("|"):
                    yield number, "prose", lines.pop()


def comment_texts(source: str) -> Iterator[Text]:
    """Yields the comments of a YAML, TOML or shell file."""
    for number, line in enumerate(source.splitlines(), start=1):
        comment = re.search(r"(?:^|\s)#\s?(.*)", line)
        if comment:
            yield number, "comment", comment[1]


def sentences(text: str) -> Iterator[str]:
    """Yields the sentences of a docstring or paragraph, without code, formulas and link targets."""
    text = re.sub(r"(?m)^\s*(?:>>>|\.\.\.).*$|^ {4}(?:python|pip) .*$(?:\n {8}.*$)*", "", text)
    text = re.sub(r":\w+:`[^`]*`|``?[^`]+``?|\]\([^)]*\)|https?://\S+", " X ", text)
    text = re.sub(r"(?m)^\s*\|.*$", "", text)  # tables in docstrings
    for paragraph in re.split(r"\n\s*\n|<br>|\n\s*(?=[-*] |\w+: |\w+ \(.*\): )|:\n", text):
        yield from re.split(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z`\d])", paragraph)


def problems(path: Path) -> Iterator[str]:
    """Yields one message per violation in a file."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    reader = {".py": python_texts, ".md": markdown_texts}.get(path.suffix, comment_texts)
    for number, kind, text in reader(source):
        if "prose: allow" in lines[number - 1]:
            continue
        place = f"{path}:{number}: {kind}"
        shown = re.sub(r"``?[^`]+``?", " ", text) if kind in {"prose", "docstring"} else text
        for allowed in ALLOWED:
            shown = shown.replace(allowed, "")
        for match in WORDS.finditer(shown):
            phrase = " ".join(match[0].split())
            suggestion = next(value for key, value in PHRASES.items() if re.fullmatch(key, phrase, re.IGNORECASE))
            yield f"{place}: '{phrase}', use: {suggestion}"
        if kind == "docstring" and QUESTIONS.match(text):
            yield f"{place} begins with '{text.split()[0]}': write a statement"
        if kind in {"docstring", "prose", "comment"}:
            for sentence in sentences(text):
                count = len(re.findall(r"[^\W\d_][\w'-]*", sentence))
                if count > MAX_WORDS:
                    yield f"{place}: sentence of {count} words: {' '.join(sentence.split())[:60]} …"


def subject_problem(subject: str) -> str | None:
    """Returns what is wrong with a commit subject, or None."""
    if len(subject) > MAX_SUBJECT:
        return f"commit subject of {len(subject)} characters, at most {MAX_SUBJECT} are allowed: {subject}"
    if not re.match(r"[A-Z]\w+ ", subject) or subject.endswith("."):
        return f"commit subject must be an imperative sentence without a period: {subject}"
    return None


def tracked_files() -> list[Path]:
    """Returns the tracked text files that are checked."""
    names = subprocess.run(
        ["git", "ls-files", "-z", *CHECKED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    paths = [ROOT / name for name in names if name.endswith((".py", ".md", ".yaml", ".sh", ".sbatch"))]
    return [path for path in paths if path != Path(__file__).resolve()]  # this file lists the phrases


def recent_subjects(count: int = 20) -> list[str]:
    """Returns the subjects of the latest commits on the current branch, without merges."""
    command = ["git", "log", f"-{count}", "--no-merges", "--format=%s"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the wording of docs and code.")
    parser.add_argument("files", nargs="*", type=Path, help="files to check (default: all tracked ones, and commits)")
    parser.add_argument("--message", type=Path, help="file with a commit message")
    arguments = parser.parse_args()
    for path in arguments.files:
        if not path.is_file():
            parser.error(f"{path} is not a file.")
    if arguments.message is not None:
        paths, subjects = [], [arguments.message.read_text(encoding="utf-8").split("\n", 1)[0]]
    elif arguments.files:
        paths, subjects = arguments.files, []
    else:
        paths, subjects = tracked_files(), recent_subjects()
    found = [problem for path in paths for problem in problems(path)]
    found += filter(None, map(subject_problem, subjects))
    for problem in found:
        print(problem.replace(f"{ROOT}/", ""))
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
