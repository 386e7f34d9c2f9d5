"""How often does another case's effect lie in the prediction interval of a cohort?

    python benchmarks/prediction_intervals.py [--cohorts 2000] [--write docs/benchmarks/prediction_intervals.md]

Cohorts are simulated: errors of the cases uniform between 0.5 and 1.5, true effects normal with standard deviation ``tau``. Side by side,
on the same cohorts: the library's interval (parametric bootstrap: Nagashima, Noma and Furukawa 2019), and the usual one, which takes
``tau`` for what it is estimated to be (``mean +- t_{n-2} sqrt(tau^2 + se^2)``: Higgins, Thompson and Spiegelhalter 2009).
"""

import math

import numpy as np
from cases import machine, parser, publish, say, start
from scipy import stats as scipy_stats

from captum_causalseg.cohort.between_cases import random_effects

SIZES, RATIOS = (3, 5, 8, 10, 20, 50), (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)


def study(n: int, tau: float, cohorts: int) -> tuple[float, float, float]:
    """Shares of both intervals that hold another case's effect, the library's first, and the ratio of their widths' medians."""
    generator = np.random.default_rng([n, int(100 * tau)])
    held, widths = np.zeros(2), []
    for _ in range(cohorts):
        error = generator.uniform(0.5, 1.5, n)
        found = random_effects(generator.normal(generator.normal(0, tau, n), error), error)
        another = generator.normal(0, tau)
        half = scipy_stats.t.ppf(0.975, n - 2) * math.hypot(found["tau"], found["standard_error"])
        ends = [(found["prediction_lower"], found["prediction_upper"]), (found["effect"] - half, found["effect"] + half)]
        held += [low <= another <= high for low, high in ends]
        widths.append([high - low for low, high in ends])
    ours, usual = np.median(widths, axis=0)
    return held[0] / cohorts, held[1] / cohorts, ours / usual


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--cohorts", type=int, default=2000, help="of every line")
    options = start(made)
    cohorts = 50 if options.quick else options.cohorts
    lines = [
        f"{machine(options)} `prediction_intervals.py`, {cohorts} cohorts a line; *tau* in units of a typical standard error.",
        "",
        "| cases | tau | usual | library | width, library / usual |",
        "|---|---|---|---|---|",
    ]
    for n in SIZES:
        for tau in RATIOS:
            ours, usual, width = study(n, tau, cohorts)
            lines.append(f"| {n} | {tau:g} | {usual:.3f} | {ours:.3f} | {width:.2f} |")
            say(lines[-1])
    publish(lines, options)


if __name__ == "__main__":
    main()
