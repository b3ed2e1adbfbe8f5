"""Computes goodput: the share of its time that a job trains if failures interrupt it.

The time between failures is exponentially distributed with mean M. A failure is detected after ``detect`` seconds. The
restart takes ``restart`` seconds, in which the job can fail again. The job then alternates between ``interval`` seconds
of training and ``stall`` seconds of waiting for a checkpoint, which is complete ``write`` seconds after its stall. A
failure loses the training since the last complete checkpoint.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from scipy.optimize import minimize_scalar


@dataclass(frozen=True)
class Costs:
    """Costs of checkpoints and failures, in seconds.

    Attributes:
        stall: Time that training waits for a checkpoint.
        write: Time from the end of the stall until the checkpoint is on disk. Training continues meanwhile.
        detect: Time from a failure to its detection.
        restart: Time from the detection until training resumes.
    """

    stall: float
    write: float
    detect: float
    restart: float


def simulate_goodput(costs: Costs, interval: float, between_failures: float, failures: int, seed: int = 0) -> float:
    """Returns the simulated share of the time that is spent on training and not lost.

    Args:
        costs: Costs of checkpoints and failures.
        interval: Seconds of training between two checkpoints. Must be above 0.
        between_failures: Mean time between failures in seconds. Must be above 0.
        failures: Number of failures to simulate. Must be at least 1.
        seed: Seed of the failure times.
    """
    generator = random.Random(seed)
    trained = wall = 0.0
    for _ in range(failures):
        life = generator.expovariate(1 / between_failures)
        wall += life
        trains = life - costs.detect - costs.restart
        committed = math.floor((trains - costs.write) / (interval + costs.stall))
        trained += interval * max(committed, 0)
    return trained / wall


def expected_goodput(costs: Costs, interval: float, between_failures: float) -> float:
    r"""Returns the expected goodput: Daly's closed form with a write in the background.

    .. math:: \frac{\tau}{M} \cdot \frac{e^{-(d + r + w) / M}}{e^{(\tau + \delta) / M} - 1}

    with the interval :math:`\tau`, the stall :math:`\delta`, detection, restart and write :math:`d, r, w`.

    References:
        A higher order estimate of the optimum checkpoint interval for restart dumps, Daly 2006, equation 20.
    """
    lost = costs.detect + costs.restart + costs.write
    cycle = interval + costs.stall
    return interval / between_failures * math.exp(-lost / between_failures) / math.expm1(cycle / between_failures)


def compute_optimal_interval(costs: Costs, between_failures: float) -> float:
    """Returns the interval with the highest goodput, in seconds."""
    span = (math.log(1e-2), math.log(10 * between_failures))
    optimum = minimize_scalar(
        lambda log: -expected_goodput(costs, math.exp(log), between_failures), bounds=span, method="bounded"
    )
    return math.exp(optimum.x)


def mean_time_between_failures(gpus: int) -> float:
    """Returns the mean time between failures in seconds.

    Interpolates two published points on logarithmic axes: 7.9 h at 1,024 GPUs and 1.8 h at 16,384 GPUs.

    References:
        Revisiting reliability in large-scale machine learning research clusters, Kokolis et al. 2024.
    """
    slope = math.log(1.8 / 7.9) / math.log(16_384 / 1024)
    return 3600 * 7.9 * (gpus / 1024) ** slope
