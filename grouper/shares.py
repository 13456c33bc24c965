"""Parsing of shares, such as "1/2" or "50%"."""

import math
from decimal import Decimal
from fractions import Fraction

from grouper.errors import GrouperError


def parsed_share(text: str, what: str, most: float = math.inf) -> float:
    """Number, fraction or percentage above 0 and at most `most`. Without `most`, 0 is allowed, and values above 1 only
    as a percentage, because "10" may mean 10% or a factor of 10. Raises GrouperError.

    >>> parsed_share("1/2", "KV ratio"), parsed_share("50%", "KV ratio"), parsed_share("0.5", "KV ratio")
    (0.5, 0.5, 0.5)
    """
    number, percent, _ = text.strip().partition("%")
    try:
        share = float(Fraction(number.strip()) / (100 if percent else 1))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise GrouperError(
            f"{what} {text!r}: expected a number, a fraction like 1/3 or a percentage like 33%"
        ) from error
    if most == math.inf and share > 1 and not percent:
        raise GrouperError(f"{what} {text}: is {text}% meant? expected a share like 0.1, or a percentage like 10%")
    if share < 0 or share > most or (share == 0 and most < math.inf):
        bounds = "0 or more" if most == math.inf else f"more than 0 and at most {most:g}"
        raise GrouperError(f"{what} {text} is out of range: expected {bounds}")
    return share


def rounding_of(text: str, most: float = 0.005) -> float:
    """Half a unit of the last digit of a share as typed, at most `most`; 0 for a fraction.

    >>> rounding_of("0.333"), rounding_of("33%"), rounding_of("0.5"), rounding_of("1/3")
    (0.0005, 0.005, 0.005, 0.0)
    """
    number, percent, _ = text.strip().partition("%")
    if "/" in number:
        return 0.0
    exponent = int(Decimal(number.strip()).as_tuple().exponent)
    return min(most, 0.5 * 10.0**exponent / (100 if percent else 1))
