"""Objects of Kubernetes, read so that nothing in them is overlooked."""


class Unknown(Exception):
    """An object has a field, or a value, that nothing here acts on."""


class Fields:
    """The fields of one mapping. Each must be asked for by name before the reader is done:

    with Fields(value, "Service a") as fields:
        kind = fields.get("type", "ClusterIP")
    """

    def __init__(self, value, path):
        if not isinstance(value, dict):
            raise Unknown(f"{path}: {value!r}; expected a mapping")
        self.value, self.path, self.asked = value, path, set()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.end()

    def get(self, name, default=None):
        self.asked.add(name)
        value = self.value.get(name)
        return default if value is None else value

    def need(self, name):
        value = self.get(name)
        if value is None:
            raise Unknown(f"{self.path}.{name}: none; expected a value")
        return value

    def only(self, name, *allowed):
        """The field, which has one of these values; absent, it counts as the first."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise Unknown(f"{self.path}.{name}: {value!r}; expected one of {allowed}")
        return value

    def fields(self, name):
        """A field that is a mapping; an empty one if it is absent."""
        return Fields(self.get(name, {}), f"{self.path}.{name}")

    def each(self, name):
        """A field that is a list of mappings; an empty one if it is absent."""
        return [Fields(one, f"{self.path}.{name}.{i}") for i, one in enumerate(self.get(name, []))]

    def no_effect(self, *names):
        """These fields change nothing on a cluster of one node that nothing is scheduled on."""
        self.asked.update(names)

    def end(self):
        unknown = sorted(set(self.value) - self.asked)
        if unknown:
            raise Unknown(f"{self.path}: unknown fields {', '.join(unknown)}")


UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def quantity(text):
    """The number that a quantity as 500m or 2Gi stands for."""
    text = str(text)
    digits = text.rstrip("mkMGi")
    try:
        return float(digits) * UNITS[text[len(digits) :]]
    except (KeyError, ValueError):
        raise Unknown(f"quantity: {text!r}; expected a number with one of {list(UNITS)}") from None


def labels_of(selector):
    """matchLabels of a selector; {} selects all."""
    with selector as fields:
        return fields.get("matchLabels", {})


def matches(wanted, labels):
    return all(labels.get(key) == value for key, value in wanted.items())
