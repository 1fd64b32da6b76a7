"""What can be wrong with the domains of a space by themselves, before any value meets a RunConfig."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from replora.load import valid_keys
from replora.reading.faults import Fault, shown
from replora.verbs import nearest
from sweeps.config import Domain, Scalar, SweepConfig
from sweeps.space import Space, value_at

__all__ = ["contains", "domain_faults", "domain_text"]

FORMS = ("values", "uniform", "log_uniform", "integers", "log_integers")


def domain_faults(config: SweepConfig) -> Iterator[Fault]:
    """Every fault of the space's domains, their bounds and their conditions."""
    base = config.run.model_dump(mode="json")
    for key, domain in config.space.items():
        yield from _form_faults(key, domain, grid=config.search.name == "grid")
        yield from _when_faults(key, domain, config)
        if key == "seed":
            text = "space.seed is not allowed: seeds are no part of the space."
            yield Fault(("space", key), text, "Use `seeds: [0, 1, 2]`.")
        if isinstance(value_at(base, key), Mapping):
            text = f"space.{key} is a section, and a sweep varies single fields."
            fields = [name for name in valid_keys(config.run) if name.startswith(f"{key}.")]
            yield Fault(("space", key), text, f"Fields: {', '.join(fields)}.")
        if key in ("task", "task.name"):
            text = f"space.{key} is not allowed: values of different tasks cannot be compared."
            yield Fault(("space", key), text, "Run a sweep for each task.")
    cyclic = Space(config).cyclic
    if cyclic:
        text = f"the conditions of {', '.join(cyclic)} wait for one another."
        yield Fault(
            ("space", cyclic[0], "when"), text, "Let one of them exist without a condition on the others."
        )


def contains(domain: Domain, value: Scalar) -> bool:
    """Whether a value lies in a domain."""
    if domain.values is not None:
        return any(type(value) is type(known) and value == known for known in domain.values)
    bounds = _bounds(domain)
    assert bounds is not None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = domain.integers is None and domain.log_integers is None
    return number and (whole or isinstance(value, int)) and bounds[0] <= float(value) <= bounds[1]


def domain_text(domain: Domain) -> str:
    """A domain as it stands in a file: `log_uniform [0.001, 0.1]`."""
    form = next(form for form in FORMS if getattr(domain, form) is not None)
    return f"{form} {shown(list(getattr(domain, form)))}"


def _bounds(domain: Domain) -> tuple[float, float] | None:
    return domain.uniform or domain.log_uniform or domain.integers or domain.log_integers


def _form_faults(key: str, domain: Domain, *, grid: bool) -> Iterator[Fault]:
    forms = [form for form in FORMS if getattr(domain, form) is not None]
    if len(forms) != 1:
        got = ", ".join(forms) or "none"
        text = f"space.{key} must have exactly one of {', '.join(FORMS)}, but got {got}."
        yield Fault(("space", key), text, "For example {log_uniform: [0.0001, 0.1]} or {values: [4, 8]}.")
        return
    at = ("space", key, forms[0])
    if domain.values is not None:
        repeated = [value for index, value in enumerate(domain.values) if value in domain.values[:index]]
        if repeated:
            yield Fault(
                at, f"space.{key}.values must not repeat a value, but {shown(repeated[0])} comes twice."
            )
        return
    if grid:
        text = f"space.{key} must list its values in a grid, but got {forms[0]}."
        yield Fault(at, text, "Use values: [...], or search.name: random or optuna.")
    bounds = _bounds(domain)
    assert bounds is not None
    yield from _bound_faults(f"space.{key}.{forms[0]}", at, *bounds)


def _bound_faults(name: str, at: tuple[str, ...], low: float, high: float) -> Iterator[Fault]:
    if low > high:
        yield Fault(at, f"{name} must be [low, high], but got {low} above {high}.", "Swap the two.")
    if at[-1] == "log_uniform" and low <= 0:
        yield Fault(at, f"{name} must begin above 0, because it is logarithmic, but got {low}.")
    if at[-1] == "log_integers" and low < 1:
        yield Fault(at, f"{name} must begin at 1 or above, because it is logarithmic, but got {low}.")


def _when_faults(key: str, domain: Domain, config: SweepConfig) -> Iterator[Fault]:
    base = config.run.model_dump(mode="json")
    for name, allowed in domain.when.items():
        at, what = ("space", key, "when", name), f"space.{key}.when.{name}"
        if not allowed:
            yield Fault(at, f"{what} must list values, but got none.")
        elif name == key:
            yield Fault(at, f"{what}: a key cannot be its own condition.")
        elif name in config.space:
            values = config.space[name].values
            if values is None:
                yield Fault(at, f"{what} needs a key with a list of values, but {name} has an interval.")
            else:
                yield from _unmet(what, at, name, allowed, {str(value): value for value in values})
        elif value_at(base, name) is None:
            keys = [*valid_keys(config.run), *config.space]
            yield Fault(at, f"{what} is no key of the space or of the run.", nearest(name, keys).strip())
        else:
            yield from _unmet(what, at, name, allowed, {"": value_at(base, name)})


def _unmet(
    what: str, at: tuple[str, ...], name: str, allowed: tuple[Scalar, ...], values: Mapping[str, Scalar]
) -> Iterator[Fault]:
    if not any(value in allowed for value in values.values()):
        got = ", ".join(shown(value) for value in values.values())
        text = f"{what} is never met: {name} is only {got}, not {' or '.join(map(shown, allowed))}."
        yield Fault(at, text)
