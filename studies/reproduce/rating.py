"""People rate pictures: blind pairs in one HTML file, and what came of them.

    bash scripts/reproduce.sh --rating_sheet table1                                writes the sheet
    python -m studies.reproduce.rating rating.key.json results.csv [more.csv ...]  reads results

A pair is a picture of a method and one of the method that the table compares with, of the same
subject, prompt and seed. Which is on the left is drawn. The sheet knows no method's name: that is
in the key beside it, which stays with you.
"""

import base64
import csv
import hashlib
import io
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eqdiff.data.folder import subject_photos
from eqdiff.errors import UserError, main_guard, require
from eqdiff.files import replacing
from eqdiff.wording import say
from studies.reproduce.cell import Cell, Row
from studies.reproduce.estimates import estimate
from studies.reproduce.methods import TABLES
from studies.reproduce.plan import Plan
from studies.reproduce.store import Store

TEMPLATE = Path(__file__).with_name("rating.html")
SHEET, KEY = "rating.html", "rating.key.json"
MARK = '"SHEET"'  # stands in the template where the sheet's own JSON comes
SIDE = 384  # of a picture in the sheet at most [pixels]
QUESTIONS = {
    "identity": "Which shows the subject of the photo more truly?",
    "text": "Which shows what the words say more truly?",
}
ANSWERS = {"left": 1.0, "right": 0.0, "same": 0.5}  # what the left one gets
COLUMNS = ("sheet", "rater", "pair", "question", "answer")

Pair = dict[str, Any]
Vote = tuple[str, str, str, str]  # rater, number of the pair, question, answer


def write_sheet(plan: Plan, store: Store, table: str, count: int, seed: int) -> tuple[Path, Path]:
    """Writes a sheet of at most `count` pairs of a table, and its key. Their files.

    Raises UserError if no two pictures of the table can be compared.
    """
    pairs = drawn_pairs(candidates(plan, store, table), count, random.Random(seed))
    remedy = "run its cells first, with --keep pictures"
    require(pairs, f"--rating_sheet {table}: no pictures of two of its methods; {remedy}")

    answers = [{k: pair[k] for k in ("left", "right", "subject", "kind")} for pair in pairs]
    text = json.dumps({"table": table, "seed": seed, "pairs": answers}, sort_keys=True)
    mark = hashlib.sha256(text.encode()).hexdigest()[:12]
    shown = [{k: pair[k] for k in ("words", "photo", "pictures")} for pair in pairs]
    sheet = {"sheet": mark, "questions": QUESTIONS, "columns": COLUMNS, "pairs": shown}
    page = TEMPLATE.read_text(encoding="utf-8").replace(MARK, embedded(sheet))

    key = {"sheet": mark, **json.loads(text)}
    for name, content in ((SHEET, page), (KEY, json.dumps(key, indent=1) + "\n")):
        with replacing(store.folder / name) as beside:
            beside.write_text(content, encoding="utf-8")
    return store.folder / SHEET, store.folder / KEY


def candidates(plan: Plan, store: Store, table: str) -> dict[str, list[Pair]]:
    """Of each method but the one that the table compares with: all pairs that could be shown."""
    rows = store.rows()
    against = TABLES[table].against
    found: dict[str, list[Pair]] = defaultdict(list)
    for (method, subject, seed), cell in plan.cells.items():
        other = plan.cells.get((against, subject, seed))
        if method == against or method not in TABLES[table].methods or other is None:
            continue
        if cell.key == other.key or not {cell.key, other.key} <= rows.keys():
            continue
        ours, theirs = (pictures(rows[each.key], store) for each in (cell, other))
        for place in sorted(ours.keys() & theirs.keys()):
            files = {method: ours[place], against: theirs[place]}
            found[method].append({"files": files, "cell": cell, "place": place})
    return found


def pictures(row: Row, store: Store) -> dict[tuple[str, str, int], Path]:
    """The kept pictures of a cell by kind, prompt and number among the prompt's pictures."""
    folder = store.kept_place(row["key"], "pictures")
    numbers: Counter[str] = Counter()
    found = {}
    for fact in row["rows"]:
        place = (fact["kind"], fact["prompt"], numbers[fact["prompt"]])
        numbers[fact["prompt"]] += 1
        if (folder / fact["file"]).is_file():
            found[place] = folder / fact["file"]
    return found


def drawn_pairs(found: dict[str, list[Pair]], count: int, draws: random.Random) -> list[Pair]:
    """So many pairs, as many of each method as of any other; the order and the sides are drawn."""
    for pairs in found.values():
        draws.shuffle(pairs)
    turns = [pair for turn in zip(*padded(list(found.values())), strict=True) for pair in turn]
    chosen = [pair for pair in turns if pair is not None][:count]
    draws.shuffle(chosen)
    return [shown(pair, draws) for pair in chosen]


def padded(lists: list[list[Pair]]) -> list[list[Pair | None]]:
    """The lists, the shorter ones with None at their ends."""
    most = max(map(len, lists), default=0)
    return [[*each, *[None] * (most - len(each))] for each in lists]


def shown(pair: Pair, draws: random.Random) -> Pair:
    """A pair as the sheet and its key have it."""
    cell: Cell = pair["cell"]
    kind, prompt, _ = pair["place"]
    left, right = draws.sample(sorted(pair["files"]), 2)
    return {
        "left": left,
        "right": right,
        "subject": cell.subject,
        "kind": kind,
        "words": prompt.replace("{}", cell.class_word),
        "photo": as_link(draws.choice(subject_photos(Path(cell.photos)))),
        "pictures": [as_link(pair["files"][side]) for side in (left, right)],
    }


def as_link(file: Path) -> str:
    """A picture as a data link, small. It is written anew: its file may say where it is from."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: no text in it ends that element."""
    text = json.dumps(value)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# -- results ---------------------------------------------------------------------------------------


def read_results(files: Sequence[Path], key: dict[str, Any]) -> list[Vote]:
    """The votes of the results of a sheet; of two of one rater on one pair the later counts.

    Raises UserError if a file is no such results, or of another sheet.
    """
    votes: dict[tuple[str, str, str], str] = {}
    for file in files:
        try:
            with file.open(encoding="utf-8", newline="") as opened:
                rows = list(csv.DictReader(opened))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file}: cannot be read as CSV ({error})") from None
        for number, row in enumerate(rows, start=2):
            where = f"{file}, line {number}"
            good = row.keys() == set(COLUMNS) and row["answer"] in ANSWERS
            good = good and row["question"] in QUESTIONS and row["pair"].isdecimal()
            require(good and int(row["pair"]) < len(key["pairs"]), f"{where}: no answer of a sheet")
            require(row["sheet"] == key["sheet"], f"{where}: of another sheet than the key's")
            votes[row["rater"], row["pair"], row["question"]] = row["answer"]
    return [(*place, answer) for place, answer in votes.items()]


def win_rates(votes: Sequence[Vote], key: dict[str, Any]) -> list[str]:
    """Lines of Markdown: how often each method wins against the one compared with.

    A draw counts half. The interval is Student's t over subjects, as in the other tables.
    """
    against = TABLES[key["table"]].against
    shares: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _, number, question, answer in votes:
        pair = key["pairs"][int(number)]
        method = pair["left"] if pair["right"] == against else pair["right"]
        won = ANSWERS[answer] if method == pair["left"] else 1 - ANSWERS[answer]
        shares[method, question][pair["subject"]].append(won)

    raters = len({vote[0] for vote in votes})
    lines = [f"{len(votes)} answers of {raters} raters: the share that wins against {against}", ""]
    lines += ["| method | question | wins | 95 % | subjects | answers |", "|---" * 6 + "|"]
    for (method, question), by_subject in sorted(shares.items()):
        found = estimate(sum(each) / len(each) for each in by_subject.values())
        low, high = max(0.0, found.low), min(1.0, found.high)
        answers = sum(map(len, by_subject.values()))
        line = f"| {method} | {question} | {found.mean:.2f} | {low:.2f} to {high:.2f} "
        lines.append(f"{line}| {found.n} | {answers} |")
    return lines


@main_guard
def main(argv: Sequence[str]) -> None:
    """Prints the win rates of a key and its results."""
    require(len(argv) > 1, "give the key of a sheet and its results: rating.key.json results.csv")
    try:
        key = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        known = key["table"] in TABLES and {"sheet", "pairs"} <= key.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{argv[0]}: no key of a sheet ({error})") from None
    require(known, f"{argv[0]}: no key of a sheet")
    for line in win_rates(read_results([Path(word) for word in argv[1:]], key), key):
        say(line)


if __name__ == "__main__":
    main(sys.argv[1:])
