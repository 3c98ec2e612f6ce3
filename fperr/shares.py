"""Shares of samples, and their confidence intervals."""

import math
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson_interval(count: int, samples: int) -> tuple[float, float]:
    """Wilson's score interval for a share, at 95 % confidence.

    Unlike the usual p +- 1.96 sqrt(p (1 - p)/n) it stays within [0, 1], and its width is not zero
    at the shares 0 and 1. Source: E. B. Wilson, Journal of the American Statistical Association 22
    (1927), 209.

    Args:
        count: Number of samples that count.
        samples: Number of all samples, 1 or more.

    Returns:
        The lower and the upper end of the interval.

    Example:
        >>> from fperr.shares import wilson_interval
        >>> wilson_interval(84, 100)
        (0.755..., 0.899...)
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = count / samples, z * z / samples
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson_limit(count: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The upper confidence limit for a share, which holds for every true share.

    Source: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934), 404.

    Args:
        count: Number of samples that count.
        samples: Number of all samples.
        confidence: Confidence of the limit, one-sided.

    Returns:
        The largest share at which `count` or fewer samples have a probability of 1 - confidence;
        1 if all samples count, or there are none.

    Example:
        >>> from fperr.shares import clopper_pearson_limit
        >>> clopper_pearson_limit(0, 30)
        0.095...
    """
    if count >= samples:
        return 1.0
    low, high = count / samples, 1.0
    for _ in range(60):
        share = (low + high) / 2
        few = math.fsum(_probability(k, samples, share) for k in range(count + 1))
        low, high = (share, high) if few > 1 - confidence else (low, share)
    return high


def _probability(count: int, samples: int, share: float) -> float:
    """The binomial probability of a count, for a share between 0 and 1, both left out."""
    if share >= 1:
        return 0.0
    log_ways = math.lgamma(samples + 1) - math.lgamma(count + 1) - math.lgamma(samples - count + 1)
    return math.exp(log_ways + count * math.log(share) + (samples - count) * math.log1p(-share))
