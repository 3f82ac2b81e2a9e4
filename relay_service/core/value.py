"""Values that are made for every call."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

Made = TypeVar("Made")


@dataclass_transform(frozen_default=True)
def value(cls: type[Made]) -> type[Made]:
    """A data class that nobody may write to: the type checker sees to it, and not each `__init__`.

    A frozen data class is made through ``object.__setattr__``, field by field; with a dozen such values
    in each call that was a tenth of what a call costs.
    """
    return dataclass(slots=True)(cls)
