"""Commands out of functions: options from dataclasses, what is typed as what Python gets."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from grouper.option_fields import Option, option, same, words_of
from search.commands.application import app
from search.commands.options import Command, as_flags, command, completing


@dataclass(frozen=True)
class Cake:
    layers: int = option(2, "Layers of it.", panel="Baking")
    tops: tuple[str, ...] = option(("nuts", "ice"), "What goes on top.", words=("nuts", "ice", "figs"))
    share: float = option(0.1, "Sugar.", read=lambda typed: float(typed.rstrip("%")) / 100, shown="{:.0%}".format)
    note: tuple[str, ...] = option((), "Notes.", several=True)
    warm: bool = option(True, "Served warm.")
    oven: str = "ours"


@dataclass(frozen=True)
class Guest:
    name: str = option(MISSING, "Who comes.", name="guest_name", metavar="NAME")
    late: bool = option(False, "Comes late.")


@dataclass(frozen=True)
class Host:
    house: str = option(MISSING, "Whose house.")


@dataclass(frozen=True)
class Table:
    host: Host
    seats: int = same(Cake, "layers", help="Seats.", name="seats")


def typed(*words: object, width: int = 200):
    """What a command got, and what its help says."""
    got = {}
    made = typer.Typer(add_completion=False)

    @command("bake", first="layers")
    def run(
        cake: Cake, guest: Guest | None, table: Table | None, place: Annotated[Path, Option("Where.", short="-p")]
    ) -> None:
        """Bake."""
        got.update(cake=cake, guest=guest, table=table, place=place)

    made.command("bake", cls=Command)(run)
    done = CliRunner().invoke(made, [str(word) for word in words], env={"COLUMNS": str(width)})
    return got, done


def test_defaults_are_the_dataclasses_own():
    got, done = typed("-p", "here")
    assert done.exit_code == 0, done.output
    assert got == {"cake": Cake(), "guest": None, "table": None, "place": Path("here")}


def test_what_is_typed_becomes_what_python_gets():
    words = ["--layers", 3, "--tops", "figs, nuts", "--share", "25%", "--note", "a", "--note", "b,c", "--no-warm"]
    got, done = typed("-p", "x", *words, "--guest-name", "Ada", "--late", "--seats", 5, "--house", "B")
    assert done.exit_code == 0, done.output
    assert got["cake"] == Cake(3, ("figs", "nuts"), 0.25, ("a", "b,c"), warm=False)
    assert got["guest"] == Guest("Ada", late=True) and got["table"] == Table(Host("B"), 5)


def test_what_may_be_left_away_is_none_without_what_it_needs():
    got, _ = typed("-p", "x", "--late", "--seats", 4)
    assert got["guest"] is None and got["table"] is None


@pytest.mark.parametrize(("words", "said"), [
    (("search", "demo", "--merge", "mean"), "No such option: --merge: it is an option of regroup, evaluate and export"),
    (("search", "demo", "--kv-ratio=1/2"), "No such option: --kv-ratio: it is an option of regroup and export"),
    (("search", "demo", "--kv-heads", "4"), "finds all numbers of KV heads; --kv-ratio of regroup and export picks"),
    (("export", "run", "--generations", "4"), "No such option: --generations: it is an option of regroup and search"),
    (("layouts", "run", "--card", "80GB"), "No such option: --card: it is an option of inspect"),
    (("search", "demo", "--txt", "demo"), "No such option: --txt (Possible options: --"),
    (("export", "run", "-o"), "Option '-o' requires an argument."),
])  # fmt: skip
def test_an_option_of_another_command_is_sent_there(words, said):
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert done.exit_code == 2 and said in done.output


def test_usage_errors():
    assert typed()[1].exit_code == 2 and typed("-p", "x", "--oven", "yours")[1].exit_code == 2
    assert typed("-p", "x", "--layers", 10**16)[1].exit_code == 2


def test_help_has_the_first_options_before_its_groups_and_nothing_behind_flags():
    shown = typed("--help")[1].output
    assert shown.index("─ Options ─") < shown.index("--layers") < shown.index("─ Hub ─" if "─ Hub ─" in shown else "╰")
    assert "<bool>" not in shown and "<int>" not in shown and "One of nuts, ice, figs." in " ".join(shown.split())
    assert "10%" in shown and "nuts,ice" in shown


@pytest.mark.parametrize("name", [info.callback.__name__ for info in app.registered_commands])
def test_eight_options_come_first_at_most(name):
    """Beside --help; where there are more than a dozen."""
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
    first = shown[shown.index("─ Options ─") :].partition("╰")[0]
    many = shown.count("│ --") + shown.count("│    --") + shown.count("│ *  --")
    assert not [line for line in shown.splitlines() if "--" in line and "<" in line]
    assert many <= 12 or sum("--" in line for line in first.splitlines()) <= 9, first


def test_shells_complete_the_last_of_several_words():
    assert completing(["exact", "kdgqa"])("kd") == ["kdgqa"]
    assert completing(["ward", "dgqa", "dgqa-diff"])("ward,dgqa") == ["ward,dgqa", "ward,dgqa-diff"]


def test_words_are_found_where_they_stand():
    named = Option("A merge.", words="grouper.merging.MERGES")
    assert "spectral" in named.known_words() and Option("None.").known_words() == []
    assert words_of("a, b") == ("a", "b")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`tokens=0`: expected a number above 0", "--tokens 0: expected a number above 0"),
        ("see `overwrite=True`, or `merge=mean` `refine=False`", "see --overwrite, or --merge mean --no-refine"),
        ("take a lower `lr`; `few_shot=-1`", "take a lower --lr; --num-fewshot -1"),
        ("give `text=FILE`, with a `text` or chat `messages`", "give --text FILE, with a `text` or chat `messages`"),
        ("`clip=0` is no option of a command", "`clip=0` is no option of a command"),
    ],
)
def test_fields_that_a_message_names_are_flags_on_the_command_line(message, shown):
    assert as_flags(message) == shown
