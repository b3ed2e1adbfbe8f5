"""Diagnosis rules, which derive findings from measurements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from stormproof.finding import Finding, Problem, check_problem_name
from stormproof.health.record import TOPICS, Record

SYMPTOMS = frozenset({
    Problem.DEAD_UNITS, Problem.SATURATED_UNITS, Problem.VANISHING_GRADIENTS, Problem.WEIGHTS_UNCHANGED,
    Problem.OUTPUT_IGNORES_INPUT, Problem.TARGETS_UNRELATED_TO_INPUTS, Problem.NO_BETTER_THAN_CONSTANT,
    Problem.LOSS_SPIKE, Problem.PLATEAU,
})  # fmt: skip
"""Problems that almost any other problem can cause."""
NUMERICAL_SYMPTOMS = SYMPTOMS | {
    Problem.LEARNING_RATE_TOO_LOW, Problem.LEARNING_RATE_TOO_HIGH, Problem.NON_FINITE, Problem.EXPLODING_GRADIENTS,
    Problem.INPUT_BADLY_SCALED,
}  # fmt: skip
"""Problems that wrong data, a wrong loss or wrong gradients can cause."""
NO_LEARNING = SYMPTOMS - {Problem.DEAD_UNITS, Problem.SATURATED_UNITS, Problem.VANISHING_GRADIENTS}
"""Problems that very small updates can cause."""


@dataclass(frozen=True)
class NotEnoughEvidence:
    """Result of a rule that cannot judge a run yet.

    Attributes:
        missing: What the rule needs, such as ``"30 steps (has 12)"``.
        is_likely: Whether the problem is likely. The next steps are then measured more often than the budget allows,
            and later ones less often.

    Raises:
        TypeError: If an attribute has a wrong type, or ``missing`` is empty.

    Example:
        >>> from stormproof import Finding, Severity
        >>> def check(record):
        ...     if len(record.losses.recent) < 3:
        ...         yield NotEnoughEvidence(f"3 batches (has {len(record.losses.recent)})")
        ...     elif all(loss == 0 for _, loss in record.losses.recent):
        ...         yield Finding("loss_of_zero", Severity.WARNING, text="the loss is 0.")
        >>> list(check(Record()))
        [NotEnoughEvidence(missing='3 batches (has 0)', is_likely=False)]
    """

    missing: str
    is_likely: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.missing, str) or not self.missing:
            raise TypeError(f"`missing` must be a text such as '30 steps (has 12)', got {self.missing!r}.")
        if not isinstance(self.is_likely, bool):
            raise TypeError(f"`is_likely` must be True or False, got {self.is_likely!r}.")


@dataclass(frozen=True)
class Rule:
    """A diagnosis rule for one problem.

    Attributes:
        problem: Problem of its findings: a :class:`stormproof.Problem`, or the name of a custom problem in snake case,
            such as ``"huge_first_loss"``.
        check: Function that yields findings for the measurements of a run, a
            :class:`stormproof.health.record.Record`, which it must not change. It is called after each due step,
            after each validation, and at the end of each epoch and of training. It yields nothing if the run does not
            have the problem, and :class:`NotEnoughEvidence` as long as the measurements are not sufficient. The first
            finding is kept. A critical one replaces it, and one of severity ``info`` is kept in addition. ``ddp_spawn``
            requires a function of a module.
        explains: Other problems that this one can cause. Their findings become consequences of its finding.
        explains_if_critical: Problems of ``explains`` that only a critical finding explains.
        is_obsolete: Function that returns whether findings above severity ``info`` no longer apply. Earlier ones then
            become ``info``, and new ones are ignored.
        documentation: URL of a page about the problem. If empty, the page of the :class:`stormproof.Problem`.
        needs: Topics of the record that ``check`` and ``is_obsolete`` read, by default all. Steps are traced, monitors
            added and ranks compared only if a rule needs this.

    Raises:
        ValueError: If a name is not in snake case, or a topic is unknown.
        TypeError: If ``check`` or ``is_obsolete`` is not callable, or ``explains``, ``explains_if_critical`` or
            ``needs`` is not a collection.

    Example:
        >>> from stormproof import Finding, Rule, Severity
        >>> from stormproof.health.observations.losses import Losses
        >>> def check(record):
        ...     if record.losses.first and record.losses.first[0] > 1e6:
        ...         text = f"the first loss is {record.losses.first[0]:.3g}."
        ...         yield Finding("huge_first_loss", Severity.WARNING, text=text, advice="Standardize the targets.")
        >>> rule = Rule("huge_first_loss", check, explains=frozenset({"loss_spike"}))
        >>> print(*rule.check(Record(losses=Losses(first=(3e7,)))))
        warning: HUGE_FIRST_LOSS  The first loss is 3e+07. Standardize the targets.
    """

    problem: str
    check: Callable[[Record], Iterable[Finding | NotEnoughEvidence]]
    explains: Collection[str] = frozenset()
    is_obsolete: Callable[[Record], bool] | None = None
    documentation: str = ""
    needs: Collection[str] = TOPICS
    explains_if_critical: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("explains", "explains_if_critical", "needs"):
            value = getattr(self, name)
            if not isinstance(value, Iterable):
                raise TypeError(f"`{name}` must be a set or a list of names, got {value!r}.")
            object.__setattr__(self, name, frozenset({value} if isinstance(value, str) else value))
        for name in (self.problem, *self.explains):
            check_problem_name(name)
        for topic in self.needs:
            if topic not in TOPICS:
                raise ValueError(
                    f"`needs` contains the unknown topic {topic!r}. Known topics: {', '.join(sorted(TOPICS))}."
                )
        for name in ("check", "is_obsolete"):
            function = getattr(self, name)
            if not callable(function) and (function is not None or name == "check"):
                raise TypeError(f"`{name}` must be a function, got {function!r}.")
