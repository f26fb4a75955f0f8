r"""Units of measure after a number, and the words that only count things.

A known unit is a size in base units and the powers of them, so that 60 minutes are an hour and no 60 hours. Words
that are no known unit ("apples") are a unit of their own, which equals only itself.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from maxent_grpo.pipeline.answers.tokens import Unreadable


@dataclass(frozen=True)
class Unit:
    """A size, and each base unit with its power, sorted by name."""

    size: Fraction
    powers: tuple[tuple[str, int], ...]

    def multiply(self, other: "Unit", power: int) -> "Unit":
        """Return this unit times a power of the other."""
        powers = dict(self.powers)
        for name, count in other.powers:
            powers[name] = powers.get(name, 0) + power * count
        size = self.size * other.size**power
        return Unit(size, tuple(sorted((name, count) for name, count in powers.items() if count)))


_NONE = Unit(Fraction(1), ())
# base unit: {size: names, the plural in -s understood for names of three letters and more}
_TABLE = {
    "m": {
        "1": "m meter metre", "1/100": "cm centimeter centimetre", "1/1000": "mm millimeter millimetre",
        "1000": "km kilometer kilometre", "0.0254": "in inch inches", "0.3048": "ft foot feet",
        "0.9144": "yd yard", "1609.344": "mi mile", "1/10": "dm decimeter decimetre", "1e-6": "micrometer micron",
        "1e-9": "nm nanometer",
    },
    "s": {
        "1": "s sec second", "60": "min minute", "3600": "h hr hour", "86400": "day", "604800": "week",
        "1/1000": "ms millisecond",
    },
    "month": {"1": "month", "12": "year yr"},
    "kg": {
        "1": "kg kilogram", "1/1000": "g gram", "1e-6": "mg milligram", "1000": "tonne",
        "0.45359237": "lb pound", "0.028349523125": "oz ounce",
    },
    "dollar": {"1": "dollar usd", "1/100": "cent"},
    "euro": {"1": "euro eur"},
    "yen": {"1": "yen"},
    "degree": {"1": "degree deg", "1/60": "arcminute"},
    "radian": {"1": "radian rad"},
    "celsius": {"1": "celsius"},
    "fahrenheit": {"1": "fahrenheit"},
    "kelvin": {"1": "kelvin K"},
    "A": {"1": "A amp ampere"},
    "mol": {"1": "mol mole"},
    "unit": {"1": "unit"},
    "cup": {"1": "cup"},
}  # fmt: skip
_DERIVED = {  # size in the base units, which are written as powers
    "L liter litre": ("1/1000", "m3"), "mL ml milliliter millilitre": ("1e-6", "m3"),
    "gallon": ("0.003785411784", "m3"), "acre": ("4046.8564224", "m2"),
    "hectare ha": ("10000", "m2"), "N newton": ("1", "kg1m1s-2"),
    "J joule": ("1", "kg1m2s-2"), "kJ kilojoule": ("1000", "kg1m2s-2"), "W watt": ("1", "kg1m2s-3"),
    "kW kilowatt": ("1000", "kg1m2s-3"), "Pa pascal": ("1", "kg1m-1s-2"), "Hz hertz": ("1", "s-1"),
    "V volt": ("1", "kg1m2s-3A-1"), "mph": ("0.44704", "m1s-1"), "kph kmh": ("1/3.6", "m1s-1"),
}  # fmt: skip


def _build_units() -> dict[str, Unit]:
    units = {}
    for base, sizes in _TABLE.items():
        for size, names in sizes.items():
            for name in names.split():
                units[name] = Unit(_read_size(size), ((base, 1),))
    for names, (size, powers) in _DERIVED.items():
        factors = tuple(sorted((base, int(count)) for base, count in re.findall(r"([A-Za-z]+)(-?\d)", powers)))
        units.update(dict.fromkeys(names.split(), Unit(_read_size(size), factors)))
    return units


def _read_size(size: str) -> Fraction:
    numerator, _, denominator = size.partition("/")
    return Fraction(numerator) / Fraction(denominator or "1")


UNITS = _build_units()
# After a number these say something other than what is counted.
_OTHER_WORDS = """
    not wrong no or and if minus plus times choose mod modulo over to than is are was be the a an half halves
    third thirds quarter quarters hundred thousand million billion trillion dozen dozens score pair pairs
    percent squared cubed factorial remainder more less most least about approximately maybe but except without
    negative positive point where when for with in by base log sin cos tan sqrt root degrees pi infinity of from
    root incorrect unless at on as does do never none nothing nor x y z n k
"""
_NO_UNITS = frozenset(_OTHER_WORDS.split())
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_WORD = re.compile(r"[A-Za-z]+|\^\s*\{?\s*(?P<power>-?\d)\s*\}?|[/*]|\S")
_MOST_WORDS = 12


def read_unit(text: str) -> Unit:
    """Return the unit that words spell.

    Raises:
        Unreadable: if they spell none.

    >>> read_unit("hours") == read_unit("h"), read_unit("km/h") == read_unit("kilometers per hour")
    (True, True)
    >>> read_unit("square meters") == read_unit("m^2"), read_unit("apples").powers
    (True, (('apple', 1),))
    """
    unit, sign, power_before, last = _NONE, 1, 1, None
    words = list(_WORD.finditer(text.replace("miles per hour", "mph").replace("{", "").replace("}", "")))
    if not 0 < len(words) <= _MOST_WORDS:
        raise Unreadable(f"{text[:40]!r} is no unit")
    for match in words:
        word = match[0]
        if word == "." and match.start():  # of an abbreviation, as in sq. units
            continue
        if match["power"] is not None and last is not None:
            unit = unit.multiply(last[0], last[1] * (int(match["power"]) - 1))
            last = None
        elif word in ("/", "per"):
            sign = -1
        elif word in ("*", "of") and last is not None:
            continue
        elif word.lower() in _POWER_WORDS:
            power_before = _POWER_WORDS[word.lower()]
        else:
            last = _find_unit(word), sign * power_before
            unit, sign, power_before = unit.multiply(*last), 1, 1
    if sign != 1 or power_before != 1 or unit == _NONE:
        raise Unreadable(f"{text[:40]!r} is no unit")
    return unit


def _find_unit(word: str) -> Unit:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        # Of a symbol of one or two letters the case tells millimeter from megameter.
        if name in UNITS and (name == word or len(name) > 2):
            return UNITS[name]
    name = word.lower()
    if len(name) < 3 or not name.isalpha() or name in _NO_UNITS or name.endswith(("th", "ths", "nds", "ly")):
        raise Unreadable(f"{word!r} is no unit")
    return Unit(Fraction(1), ((_make_singular(name), 1),))


def _make_singular(name: str) -> str:
    if name in ("people", "persons"):
        return "person"
    if name.endswith("ies") and len(name) > 4:
        return name[:-3] + "y"
    if name.endswith(("ches", "shes", "xes", "sses")):
        return name[:-2]
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name
