"""Column: a column of scores in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of scores.

    Attributes:
        name: Name for the first target; another target's columns have its name after ``vog``.
        title: Heading for people.
        meaning: Description of a value.
        unit: Unit and range; ``{unit}`` is the unit of the target's gradient.
        higher: Meaning of a higher value.
    """

    name: str
    title: str
    meaning: str
    unit: str
    higher: str
