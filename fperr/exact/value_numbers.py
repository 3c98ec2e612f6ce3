"""Value numbers: which numbers are equal by the rules of arithmetic, whatever their digits.

Compilers number values in the same sense: equal numbers for equal expressions. Here the network is
evaluated a second time over two finite fields. Every number carries its residues modulo two primes
below 2^20, which are drawn at random. A float m 2^e has residues because 2 has an inverse modulo an
odd prime. Sums, differences, products, quotients, matrix products and convolutions of residues are
those of the fields. Taking residues commutes with all of these operations, so numbers that are
equal by the rules of arithmetic have equal value numbers, in whatever order they were computed: a
filter that sums to zero has the value number 0 on a constant patch, and so has x - mean(x) on a
constant row.
The fields have no exp or tanh. The residues of such a function f(a) are hashed from f and the value
number of a, and satisfy the exact relations that `_Function` lists.

Different numbers have the same value number if both primes divide the numerator of their
difference: for numbers without a pattern with a probability near 2^-40. With residues drawn at
random, it would be at most (d/p)^2 for a difference that is a polynomial of degree d in them
(Schwartz, Zippel), where d is about the number of layers. The primes are drawn for each process, so
that no network can be built to collide. Still, value numbers are used only where the error bounds
of two numbers cannot tell them apart, and a sample is reported as undecided if two numbers have
equal value numbers and are certainly different.

Two small primes are faster than a single large one. Sums of products of residues below 2^20 fit
into float64, so a product of matrices takes two products in float64. A prime below 2^40 would need
residues in halves, and four. For the same reason residues are stored as float64. NaN marks a number
that is equal to no other: an infinity or a quotient by zero.

None stands in place of value numbers that are not needed, as in the backward half.
"""

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

_BITS = 20


def _drawn_primes() -> tuple[int, int]:
    """Two of the 38,635 primes between 2^19 and 2^20, by the system's generator."""
    numbers = range(2 ** (_BITS - 1) + 1, 2**_BITS, 2)
    is_prime = bytearray([1]) * len(numbers)
    for divisor in range(3, 2 ** (_BITS // 2), 2):
        first = -(-numbers[0] // divisor) * divisor
        first += divisor if first % 2 == 0 else 0
        start = (first - numbers[0]) // 2
        is_prime[start::divisor] = bytes(len(range(start, len(numbers), divisor)))
    primes = [number for number, prime in zip(numbers, is_prime, strict=True) if prime]
    first, second = secrets.SystemRandom().sample(primes, 2)
    return first, second


PRIMES = _drawn_primes()  # for each process: no network can be built to collide
# `_reduced` is exact below 2^51. Products of two residues are below 2^38, as |residue| < 2^19: sums
# of 2^13 of them can be reduced.
_REDUCIBLE, LONGEST_SUM = 2**51, 2**13
_SIGNIFICAND = 53
_LEAST_EXPONENT, _LARGEST_EXPONENT = -1074 - _SIGNIFICAND, 1024 + _SIGNIFICAND
_HALF = 26  # bits of the lower part of a significand
_HASHED = 50  # bits of a hash that become a residue
# Odd multipliers that mix bits. The first is 2^64 over the golden ratio, as a signed number.
_ODD = -0x61C8864680B583EB
_OTHER = -0x4B47D0C5A1A6A7B5

Multiply = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class ValueNumbers:
    """The value numbers of an array.

    Attributes:
        residues: Tensors of the array's shape, one for each prime p: float64 holding integers
            between -(p - 1)/2 and (p - 1)/2, or NaN.
    """

    residues: tuple[Tensor, ...]

    def moved(self, move: Callable[[Tensor], Tensor]) -> "ValueNumbers":
        """Rearrange the residues with `move`, which must not compute."""
        return ValueNumbers(tuple(map(move, self.residues)))

    def equals(self, other: "ValueNumbers") -> Tensor:
        """The mask of equal value numbers; the shapes broadcast."""
        return _all_of([a == b for a, b in zip(self.residues, other.residues, strict=True)])

    def equals_float(self, number: float) -> Tensor:
        """The mask of value numbers equal to that of a Python float."""
        if number == 0:
            return _all_of([r == 0 for r in self.residues])
        return self.equals(of_float(number, self.residues[0].device))

    def identifiers(self) -> Tensor:
        """Integers (int64), equal for equal value numbers; negative and distinct at NaN."""
        packed = self._packed()
        undefined = self.residues[0].isnan()
        for residue in self.residues[1:]:
            undefined = undefined | residue.isnan()
        if not bool(undefined.any()):
            return packed
        single = -1 - torch.arange(packed.numel(), device=packed.device).reshape(packed.shape)
        return torch.where(undefined, single, packed)

    def _packed(self) -> Tensor:
        """The residues side by side in the bits of an int64."""
        packed = torch.zeros_like(self.residues[0], dtype=torch.int64)
        for p, residue in zip(PRIMES, self.residues, strict=True):
            packed = (packed << _BITS) + (residue.nan_to_num() + p // 2).to(torch.int64)
        return packed


@dataclass(frozen=True, slots=True)
class Factor:
    """The constant operand of a product, split so that sums of its products can be reduced.

    Attributes:
        pieces: Pieces of the residues for each prime, the highest first.
        width: Bits of a piece.
    """

    pieces: tuple[tuple[Tensor, ...], ...]
    width: int


@dataclass(frozen=True, slots=True)
class _Function:
    """Exact relations that a function satisfies.

    Attributes:
        is_odd: Whether f(-a) = -f(a), and so f(0) = 0.
        at: Argument and value of the function there, both integers.
    """

    is_odd: bool = False
    at: tuple[float, float] | None = None


_FUNCTIONS = {
    "exp": _Function(at=(0.0, 1.0)),
    "log": _Function(at=(1.0, 0.0)),
    "rsqrt": _Function(at=(1.0, 1.0)),
    "tanh": _Function(is_odd=True),
    "erf": _Function(is_odd=True),
    "sin": _Function(is_odd=True),
    "cos": _Function(at=(0.0, 1.0)),
    "atan": _Function(is_odd=True),
}


def zeros(shape: Sequence[int], device: torch.device | str = "cpu") -> ValueNumbers:
    """Make the value numbers of zeros."""
    zero = torch.zeros((), dtype=torch.float64, device=device).expand(tuple(shape))
    return ValueNumbers((zero,) * len(PRIMES))


def of_floats(floats: Tensor) -> ValueNumbers:
    """Make the value numbers of float64 numbers."""
    significand, exponent = torch.frexp(floats)
    integer = significand * 2.0**_SIGNIFICAND  # an integer; NaN and infinities stay
    high = torch.floor(integer * 2.0**-_HALF)
    low = integer - high * 2.0**_HALF
    exponent_index = exponent.reshape(-1) - (_SIGNIFICAND + _LEAST_EXPONENT)
    is_finite = bool(floats.isfinite().all())
    if not is_finite:
        exponent_index = torch.where(floats.isfinite().reshape(-1), exponent_index, 0)
    residues = []
    for p in PRIMES:
        # |high| <= 2^27 times a residue below 2^19, plus low below 2^26: `_reduced` is exact
        short = _reduced(high * _centred(2**_HALF, p) + low, p)
        scale = (
            _powers_of_two(p)
            .to(floats.device)
            .index_select(0, exponent_index)
            .reshape(floats.shape)
        )
        residue = _reduced(short.mul_(scale), p)
        residues.append(
            residue if is_finite else torch.where(floats.isfinite(), residue, torch.nan)
        )
    return ValueNumbers(tuple(residues))


@lru_cache(maxsize=1024)
def of_float(number: float, device: torch.device | str = "cpu") -> ValueNumbers:
    """Make the value number of a Python float, without dimensions."""
    if number == 0:
        return zeros((), device)
    return of_floats(torch.tensor(float(number), dtype=torch.float64, device=device))


def of_dyadics(numbers: Sequence[tuple[int, int]]) -> ValueNumbers:
    """Make the value numbers of m 2^e for pairs (m, e) of integers of any size."""
    rows = [[_centred(m * pow(2, e, p), p) for m, e in numbers] for p in PRIMES]
    return ValueNumbers(tuple(torch.tensor(row, dtype=torch.float64) for row in rows))


def of_name(name: str, device: torch.device | str = "cpu") -> ValueNumbers:
    """Make the value number, of shape (1,), of an irrational constant."""
    return _hashed(torch.zeros(1, dtype=torch.int64, device=device), name)


def total(a: ValueNumbers | None, b: ValueNumbers | None, sign: int = 1) -> ValueNumbers | None:
    """The value numbers of a + b or, with sign -1, of a - b."""
    if a is None or b is None:
        return None
    return _by_prime(lambda p, x, y: _reduced(torch.add(x, y, alpha=sign), p), a, b)


def negative(a: ValueNumbers | None) -> ValueNumbers | None:
    """The value numbers of -a."""
    return None if a is None else ValueNumbers(tuple(-r for r in a.residues))


def times(a: ValueNumbers | None, b: ValueNumbers | None) -> ValueNumbers | None:
    """The value numbers of a b."""
    if a is None or b is None:
        return None
    return _by_prime(lambda p, x, y: _reduced(x * y, p), a, b)


def inverse(a: ValueNumbers | None) -> ValueNumbers | None:
    """The value numbers of 1/a; NaN where a is 0.

    If only one of the primes divides a, the residue modulo that prime has no inverse and gets a
    hashed one.
    """
    if a is None:
        return None
    inverses = _by_prime(lambda p, x: _power(x, p - 2, p), a)
    is_divisible = [r == 0 for r in a.residues]
    if not any(bool(d.any()) for d in is_divisible):
        return inverses
    hashed, is_zero = _hashed(a._packed(), "inverse"), _all_of(is_divisible)
    return ValueNumbers(
        tuple(
            torch.where(is_zero, torch.nan, torch.where(divisible, other, residue))
            for residue, other, divisible in zip(
                inverses.residues, hashed.residues, is_divisible, strict=True
            )
        )
    )


def of_function(name: str, a: ValueNumbers | None) -> ValueNumbers | None:
    """The value numbers of an elementary function's values."""
    if a is None:
        return None
    relations = _FUNCTIONS[name]
    if not relations.is_odd:
        hashed = _hashed(a._packed(), name, a)
        if relations.at is None:
            return hashed
        argument, value = relations.at
        at = _all_of([r == argument for r in a.residues])
        return hashed.moved(lambda t: torch.where(at, value, t))
    sign = torch.zeros_like(a.residues[0])
    for residue in a.residues:  # of the first residue that is not 0
        sign = torch.where(sign == 0, residue.sign(), sign)
    upward = a.moved(lambda t: t * sign)
    return _hashed(upward._packed(), name, upward).moved(lambda t: t * sign)


def sum_last(a: ValueNumbers | None) -> ValueNumbers | None:
    """The value numbers of sums along the last dimension of fewer than 2^32 numbers."""
    return None if a is None else _by_prime(lambda p, t: _reduced(t.sum(-1), p), a)


def scattered(a: ValueNumbers | None, positions: Tensor, count: int) -> ValueNumbers | None:
    """The value numbers (..., count) of sums of the entries that have the same position.

    Args:
        a: Value numbers (..., terms) of the entries.
        positions: Position (..., terms) of each entry in the result.
        count: Length of the result.
    """
    if a is None:
        return None

    def sums_at_positions(p: int, t: Tensor) -> Tensor:
        sums = t.new_zeros(*t.shape[:-1], count)
        return _reduced(sums.scatter_add_(-1, positions, t), p)

    return _by_prime(sums_at_positions, a)


def concatenated(arrays: Sequence[ValueNumbers | None], dim: int) -> ValueNumbers | None:
    """The value numbers of arrays joined along `dim`."""
    numbered = [a for a in arrays if a is not None]
    if len(numbered) < len(arrays):
        return None
    joined = zip(*(a.residues for a in numbered), strict=True)
    return ValueNumbers(tuple(torch.cat(residues, dim) for residues in joined))


def where(mask: Tensor, a: ValueNumbers | None, b: ValueNumbers | None) -> ValueNumbers | None:
    """The value numbers of a where the mask is true, else those of b."""
    if a is None or b is None:
        return None
    return _by_prime(lambda _, x, y: torch.where(mask, x, y), a, b)


def factor(a: ValueNumbers | None, terms: int) -> Factor | None:
    """Split the constant operand of products that are sums of `terms` terms.

    Pieces of `width` bits have products with a residue below 2^(18 + width), and sums of `terms` of
    these below 2^50. For up to `LONGEST_SUM` terms, the residues themselves are short enough.
    """
    if a is None:
        return None
    if terms <= LONGEST_SUM:
        return Factor(tuple((r,) for r in a.residues), _BITS)
    width = 32 - math.ceil(math.log2(terms))
    return Factor(tuple(_pieces(r, width) for r in a.residues), width)


def product(a: ValueNumbers | None, b: Factor | None, multiply: Multiply) -> ValueNumbers | None:
    """The value numbers of a product of matrices, a convolution, or the transpose of one.

    Args:
        a: Left operand.
        b: Right operand.
        multiply: Product in float64, exact as long as its sums stay below 2^53.
    """
    if a is None or b is None:
        return None
    residues = []
    for p, left, pieces in zip(PRIMES, a.residues, b.pieces, strict=True):
        residue = _reduced(multiply(left, pieces[0]), p)
        for piece in pieces[1:]:
            residue = _reduced(multiply(left, piece).add_(residue, alpha=2**b.width), p)
        residues.append(residue)
    return ValueNumbers(tuple(residues))


def _by_prime(compute: Callable[..., Tensor], *arrays: ValueNumbers) -> ValueNumbers:
    residues_by_prime = zip(PRIMES, *(a.residues for a in arrays), strict=True)
    return ValueNumbers(tuple(compute(*residues) for residues in residues_by_prime))


def _all_of(masks: Sequence[Tensor]) -> Tensor:
    conjunction = masks[0]
    for mask in masks[1:]:
        conjunction = conjunction & mask
    return conjunction


def _reduced(a: Tensor, p: int) -> Tensor:
    """Reduce integers below 2^51 in magnitude to their residues nearest to 0, **in place**.

    a/p has a distance of at least 1/(2p) from the middle between two integers, because p is odd. It
    is computed with an error below 2^-52 |a|/p < 1/(2p). So it is rounded to the right integer.
    """
    quotient = (a * (1 / p)).round_()
    return a.sub_(quotient, alpha=p)


def _centred(number: int, p: int) -> int:
    """The residue nearest to 0."""
    residue = number % p
    return residue - p if residue > p // 2 else residue


def _power(a: Tensor, exponent: int, p: int) -> Tensor:
    """The residues of a**exponent, by repeated squaring."""
    result = torch.ones_like(a)
    for bit in bin(exponent)[2:]:
        result = _reduced(result * result, p)
        if bit == "1":
            result = _reduced(result * a, p)
    return result


def _pieces(residue: Tensor, width: int) -> tuple[Tensor, ...]:
    """Split residues into integers of magnitude up to 2^(width - 1), the highest first."""
    pieces = []
    for _ in range(math.ceil(_BITS / width) - 1):
        high = (residue * 2.0**-width).round_()
        pieces.append(residue - high * 2.0**width)
        residue = high
    return residue, *reversed(pieces)


@cache
def _powers_of_two(p: int) -> Tensor:
    """The residues of 2^e for all exponents e of float64's integer significands, from the least."""
    exponents = range(_LEAST_EXPONENT, _LARGEST_EXPONENT + 1)
    return torch.tensor([_centred(pow(2, e, p), p) for e in exponents], dtype=torch.float64)


def _hashed(packed: Tensor, name: str, at: ValueNumbers | None = None) -> ValueNumbers:
    """Hash residues from integers and a name; NaN where the value numbers `at` are."""
    residues = []
    for number, p in enumerate(PRIMES):
        seed = hashlib.blake2b(f"{name} {number}".encode(), digest_size=8).digest()
        bits = _mixed(_mixed(packed) ^ int.from_bytes(seed, "little", signed=True))
        short = (bits >> (64 - _HASHED)) & (2**_HASHED - 1)
        residues.append(_reduced(short.to(torch.float64), p))
    if at is None:
        return ValueNumbers(tuple(residues))
    # 0 times a residue is 0, but NaN times it NaN
    undefined = sum(r * 0.0 for r in at.residues)
    return ValueNumbers(tuple(r + undefined for r in residues))


def _mixed(h: Tensor) -> Tensor:
    """Mix the bits of int64 integers; the masks make `>>`, which keeps the sign, a plain shift."""
    h = (h ^ ((h >> 30) & (2**34 - 1))) * _OTHER
    h = (h ^ ((h >> 27) & (2**37 - 1))) * _ODD
    return h ^ ((h >> 31) & (2**33 - 1))
