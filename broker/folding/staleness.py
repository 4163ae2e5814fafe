"""Weight of an update by its age in releases. Pure."""

__all__ = ["damping"]


def damping(age: int, *, half_life: float) -> float:
    """Return the factor in (0, 1] by which an update computed ``age`` releases ago counts.

    As in Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv:1903.03934, where
    ``s(t - tau)`` is polynomial or a hinge; here it is exponential, so that one number with a unit
    describes it: ``0.5 ** (age / half_life)``, ``half_life`` in releases. Very old updates keep the
    smallest positive factor, because a factor of exactly 0 would discard work without saying so.

    Raises:
        ValueError: an age below 0, or a half-life that is not positive.
    """
    if age < 0 or not half_life > 0:
        raise ValueError(f"age {age}, half-life {half_life}")
    return max(float(0.5 ** (age / half_life)), 5e-324)
